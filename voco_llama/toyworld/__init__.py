"""The synthetic world: colored shapes on a grid, written to disk in the very formats of the real data.

    write_toyworld(ToyWorldSettings(), root)

writes (see `world`, `benchmarks`, `models` for the layouts)

    tokenizer/ clip/ language/                    a tiny tokenizer, a tiny open_clip and a tiny Llama configuration
    pretrain/ instruct/ text/ clips/              training data in LLaVA's, WebVid's and Video-ChatGPT's formats
    benchmarks/lmms-lab-encoder/{name}/           five benchmarks as parquet
    scenes.json                                   part -> description of each scene, by which the parts are disjoint
    manifest.json                                 format version, settings, fingerprints of the text files

The code that reads all this is the code that reads the real data; only this package knows the world is a toy.
"""

from voco_llama.toyworld.settings import ToyWorldSettings
from voco_llama.toyworld.world import World, plan_world, write_toyworld

__all__ = ["ToyWorldSettings", "World", "plan_world", "write_toyworld"]
