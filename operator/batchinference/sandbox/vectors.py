"""Embeddings of a small deterministic kind: hashed character trigrams, unit length.

Similar texts share trigrams and so point the same way. Must not know the wire.
"""

from array import array
from base64 import b64encode
from math import sqrt
from sys import byteorder
from zlib import crc32

_SIGN_BIT = 0x80000000


def embed(text: str, dimensions: int) -> list[float]:
    """Return the text's vector, of unit length."""
    data = f" {' '.join(text.lower().split())} ".encode()
    weights: dict[int, int] = {}
    for start in range(max(1, len(data) - 2)):
        code = crc32(data[start : start + 3])
        place = code % dimensions
        weights[place] = weights.get(place, 0) + (1 if code & _SIGN_BIT else -1)
    length = sqrt(sum(weight * weight for weight in weights.values()))
    vector = [0.0] * dimensions
    if length == 0.0:  # opposite trigrams cancelled each other out
        vector[0] = 1.0
        return vector
    for place, weight in weights.items():
        vector[place] = weight / length
    return vector


def as_base64(vector: list[float]) -> str:
    """Encode a vector as OpenAI does: little-endian 32-bit floats in base64."""
    packed = array("f", vector)
    if byteorder == "big":
        packed.byteswap()
    return b64encode(packed.tobytes()).decode("ascii")
