import sys
from pathlib import Path

# Helpers that several test modules of a folder share stand beside them.
sys.path.insert(0, str(Path(__file__).parent / "router"))
