"""Several GPUs of one host, one process each: what they exchange, and how that and their own work slow each other.

    python -m sextant.validate.node.run --gpus 2 --out FOLDER

One file of rows per family, each measured by a module of that name: ``collectives``, ``experts`` (dispatch and combine
of routed tokens), ``beside`` (exchanges next to products), ``pipeline``, ``tensor_parallel``, ``host_memory``. Such a
module offers ``CASE_COLUMNS`` and ``RESULT_COLUMNS``, ``cases(n_gpus, small)``, and ``measure(case, ranks)``, which
every process calls with the same case at the same time. NVLink multicast is never used: NCCL is told so before it
starts.
"""
