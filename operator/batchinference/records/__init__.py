"""The data: readers, canonical requests and results, translation, join. Knows no Kubernetes."""
