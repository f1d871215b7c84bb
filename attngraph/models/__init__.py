"""Models: from a name to a model, its tokenizer and a fingerprint of both.

1. `sources` turns a name into a folder: a bundled demo model, a local folder, a GGUF file, or a hub id.
2. `gguf` converts a GGUF file to safetensors once, in the user's cache.
3. `support` refuses what attngraph can't trace (encoders, models without transformers' attention interface)
   before any weight is read.
4. `load` puts the parts together into a `LanguageModel`; `fingerprint` identifies weights, config and
   tokenizer.

torch and transformers are imported only when a model is loaded.
"""

from attngraph.models.language_model import LanguageModel
from attngraph.models.load import load_model, load_tokenizer
from attngraph.models.sources import BUNDLED

__all__ = ["BUNDLED", "LanguageModel", "load_model", "load_tokenizer"]
