"""python -m reasonjax.interop.lm_eval."""

import sys

from reasonjax.interop.lm_eval import main

if __name__ == '__main__':
    sys.exit(main())
