"""`python -m trainer.config > trainer/schema.json`: what the nodes and the page make their widgets from."""

import json

from .train_config import schema

print(json.dumps(schema(), indent=1, ensure_ascii=False))
