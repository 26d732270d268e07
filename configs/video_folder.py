"""Your own videos: a folder of files, a block-causal diffusion transformer, and a stream that goes on from them.

Command:   python train.py --config=configs/video_folder.py --workdir=runs/video
           after setting PATH below, or adding --config.data.path=/where/your/videos/are
Method:    teacher forcing with a noised clean copy; blocks of 2 frames; x0 predicted, error in velocity
           (as quickstart.py; see there for the reasons).
Hardware:  two CPU cores: 64 x 64 pixels at 10 frames a second, 6.5 M parameters; sizes for a GPU are below.
Expected:  see docs of the data room: clips.jsonl in the folder adds captions, labels and actions.
"""

import ml_collections

PATH = "videos"  # <- the only line to edit


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' for two CPU cores, 'gpu' (128 x 128, 130 M parameters), 'tiny' for tests."""
    c = ml_collections.ConfigDict()
    return c
