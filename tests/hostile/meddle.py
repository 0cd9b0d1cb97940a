# 25: what the runner uses, replaced by something else
import atexit, builtins, gc, json, threading

sys.settrace(lambda *_: (_ for _ in ()).throw(RuntimeError("traced")))
threading.settrace(lambda *_: 1 / 0)
atexit.register(lambda: time.sleep(60))
json.dumps = json.loads = builtins.print = lambda *_, **__: "forged"
sys.stdout = sys.stderr = sys.displayhook = sys.excepthook = None
for found in gc.get_objects():
    if type(found) is dict and found.get("__name__") == "cooper.runner":
        found.update(dict.fromkeys([name for name in found if not name.startswith("__")]))
