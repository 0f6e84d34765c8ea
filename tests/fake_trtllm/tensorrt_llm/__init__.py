"""A stand-in for tensorrt_llm with the real layout and signatures of one era, and strict.

FAKE_TRTLLM_ERA picks the era (A, C, D, E), FAKE_TRTLLM_SM the GPU. Only what the adapter touches is
here, in the modules where that era keeps it; a wrong keyword is a TypeError, a broken rule an
AssertionError, and weights nobody initialised are NaN.
"""

import os

from fake_layer import install

ERA = os.environ.get("FAKE_TRTLLM_ERA", "D")
__version__ = {"A": "1.2.0rc6", "C": "1.3.0rc10", "D": "1.3.0rc21", "E": "1.4.0rc0", "X": "9.0"}[
    ERA
]
install(ERA)
