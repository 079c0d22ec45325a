"""``python -m vedette.controller.cli``: the admin CLI of this very installation."""

import sys

from vedette.controller.cli import main

if __name__ == "__main__":
    sys.exit(main())
