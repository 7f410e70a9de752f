"""The synthetic world: colored shapes on a grid, written to disk in the very formats of the real data.

`write_toyworld(ToyWorldSettings(), root)` writes what `world` lists. The code that reads it is the code that reads the
real data; only this package knows the world is a toy.
"""

from voco_llama.toyworld.settings import ToyWorldSettings
from voco_llama.toyworld.world import World, plan_world, write_toyworld

__all__ = ["ToyWorldSettings", "World", "plan_world", "write_toyworld"]
