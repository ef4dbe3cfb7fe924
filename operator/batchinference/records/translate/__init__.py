"""Translation between the canonical bodies and providers' own, one module per family. Pure."""
