"""Evaluates a checkpoint of train.py: `python eval.py checkpoint=runs/resnet50-ba-digits-quick/seed0/best.pt`.

The model and the data are those of the checkpoint's own config; `data=...` and `data.KEY=...` override the latter.
"""

from attn.eval import main

if __name__ == "__main__":
    main()
