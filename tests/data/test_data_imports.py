import json
import subprocess
import sys

PROGRAM = """
import importlib, json, pkgutil, sys
import tokencredit.data
names = [module.name for module in pkgutil.iter_modules(tokencredit.data.__path__)]
for name in names:
    importlib.import_module(f"tokencredit.data.{name}")
print(json.dumps([names, sorted({"torch", "transformers", "trl"} & set(sys.modules))]))
"""


def test_no_module_of_data_brings_in_torch():
    output = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=120)
    names, heavy = json.loads(output.stdout)
    assert {"serialise", "json_values", "spans", "alignment", "records", "metrics", "negatives", "augment"} <= set(
        names
    )
    assert heavy == []
