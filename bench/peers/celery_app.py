"""The Celery application whose task does nothing: durable queue, late acknowledgement, results kept."""

import os

from celery import Celery

app = Celery("peer", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
app.conf.update(
    task_acks_late=True,
    worker_concurrency=2,
    broker_connection_retry_on_startup=True,
)


@app.task
def noop():
    return None
