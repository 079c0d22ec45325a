"""``python -m vedette.controller.cli``: the admin CLI of this very installation."""

from vedette.controller.cli import main

if __name__ == "__main__":
    main()
