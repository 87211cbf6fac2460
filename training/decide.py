"""Stage 2: the language model learns to look where it is asked and to decide, before it learns to talk.

From scratch a small language model talks long before its answers depend on the film. Brief questions,
a yes or a box each, make it look things up first: many decisions for few tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from radvlm_edge.training.curriculum import balanced_atom
from radvlm_edge.training.instructions import Labels, locate_finding, locate_region, yes_no
from radvlm_edge.training.packing import Block, conversation
from radvlm_edge.training.phantom_difficulty import FINDINGS
from radvlm_edge.training.pointing import NAMES

PLAIN, SIDED, REGIONS, PLACES = 14, 6, 4, 2
"""Questions about a phantom: yes or no without and with a side, boxes of regions and of findings."""


def deciding_blocks(rng: np.random.Generator, tokenizer: Any, labels: Labels) -> list[Block]:
    """What a phantom is asked in one pass of this stage."""
    atoms = [balanced_atom(rng, labels, sided=0.0) for _ in range(PLAIN)]
    atoms += [balanced_atom(rng, labels, sided=1.0) for _ in range(SIDED)]
    blocks = [conversation(tokenizer, [yes_no(rng, labels, *atom)], NAMES, brief=True) for atom in atoms]
    regions = list(labels.regions or {})
    few = rng.permutation(len(regions))[:REGIONS]
    asked = [locate_region(rng, labels, regions[int(index)]) for index in few]
    here = sorted(labels.present) or list(FINDINGS)
    asked += [locate_finding(rng, labels, here[int(rng.integers(len(here)))]) for _ in range(PLACES)]
    return blocks + [conversation(tokenizer, [one], NAMES) for one in asked]
