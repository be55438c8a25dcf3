"""`python -m tools.goldenlink`."""

from tools.goldenlink.app import main

if __name__ == "__main__":
    main()
