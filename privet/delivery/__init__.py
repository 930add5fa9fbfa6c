"""What becomes of a trained model: evaluated, explained, exported, served.

::

    run folder ── trained.load ── Trained ─┬─ evaluate   metrics, calibration, groups
     plan.json      plan, weights          ├─ explain    which words or cells decided
     model/                                ├─ export     a folder for transformers, ONNX, a card
                                           └─ http_service   an HTTP service at a site
"""
