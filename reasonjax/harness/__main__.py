"""python -m reasonjax.harness."""

import sys

from reasonjax.harness import main

if __name__ == '__main__':
    sys.exit(main())
