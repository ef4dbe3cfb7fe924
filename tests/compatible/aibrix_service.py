"""AIBrix's own metadata service, with its batch driver pointed at one fixed model endpoint.

Runs in AIBrix's virtual environment, never in the project's; `hack/compatible_server.py` starts it.
Files, batches, scheduling and result files are AIBrix's code untouched. All that is chosen here is
what its command line has no option for outside a cluster: the endpoint source.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model-url", required=True, help="origin of the model, without /v1")
    parser.add_argument("--folder", type=Path, required=True, help="its files, batches and log")
    options = parser.parse_args()
    # AIBrix reads these when it is imported.
    os.environ.update(
        STORAGE_TYPE="local",
        METASTORE_TYPE="local",
        STORAGE_LOCAL_PATH=str(options.folder / "data"),
        LOG_PATH=str(options.folder / "aibrix.log"),
    )

    import uvicorn
    from aibrix.batch import BatchDriver
    from aibrix.batch.client import StaticEndpointSource
    from aibrix.batch.state import JobStore
    from aibrix.metadata.app import build_app, build_app_args
    from aibrix.metadata.setting import settings

    service = build_app(build_app_args())
    context = service.state.infrastructure_context
    driver = BatchDriver(
        context=context,
        job_entity_manager=JobStore(),
        storage_type=settings.STORAGE_TYPE,
        metastore_type=settings.METASTORE_TYPE,
        endpoint_source=StaticEndpointSource(options.model_url, capacity=4, timeout=300),
    )
    service.state.batch_driver = driver
    context.values["batch_driver"] = driver
    uvicorn.run(service, host="127.0.0.1", port=options.port)


if __name__ == "__main__":
    main()
