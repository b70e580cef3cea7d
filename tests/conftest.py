"""Tests run on one thread a process: deterministic, and no fight for the cores."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
