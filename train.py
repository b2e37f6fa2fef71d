"""Trains a backbone with an attention: `python train.py attention=ba backbone=resnet50 data.root=/data/imagenet`.

`python train.py --help` lists all groups and keys; `torchrun --nproc-per-node=8 train.py ...` trains on many GPUs.
"""

from attn.train import main

if __name__ == "__main__":
    main()
