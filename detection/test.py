"""Tests a detector: `python detection/test.py CONFIG CHECKPOINT [--show-dir pictures]`.

The checkpoint must be of the config's detector, key by key: MMDetection would test what it lacks with random weights.
"""

from __future__ import annotations

from detection import cli


def main() -> None:
    parser = cli.parser(__doc__ or "")
    parser.add_argument("checkpoint", help="what train.py saved, such as work_dirs/NAME/epoch_12.pth")
    parser.add_argument("--show-dir", help="draw detections beside the annotations, into this folder of the work directory")
    parser.add_argument("--show-score", type=float, default=0.3, help="least score of a drawn detection (default 0.3)")
    args = parser.parse_args()
    cfg = cli.load(args)
    cfg.load_from = args.checkpoint
    if args.show_dir:
        hook = cfg.default_hooks.visualization
        hook.update(draw=True, interval=1, test_out_dir=args.show_dir, score_thr=args.show_score)
    cli.build_runner(cfg, "test").test()


if __name__ == "__main__":
    cli.run(main)
