"""What runs in child processes: imports, snapshots, the look into model files, training.

A job is a module with a ``main``; it reads ``job.json`` in its folder, works under the limits named there and writes
``result.json``. The server process never imports a job: the libraries in here would cost it 200 MB and its good name.
"""
