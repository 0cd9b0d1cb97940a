"""A repair: what is wrong, what would be done, and then do it. Arguments: a stack and one of its services."""

import sys

from cooper import Cluster

stack, service = sys.argv[1:]
with Cluster() as cluster:
    seen = cluster.repair(service, stack=stack, dry_run=True)
    print("cause:", seen.wait().cause)
    for file in seen.plan()["files"]:
        print(file["diff"])

    repair = cluster.repair(service, stack=stack)
    if repair.wait(approval=True).state == "awaiting_approval":
        print("why it asks:", *repair.known.approval_reasons)
        repair.approve("seen in an example")
    info = repair.wait()
    print("state:", info.state)
    print("kept:", ", ".join(artifact.name for artifact in repair.artifacts()))
