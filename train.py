"""Train a robust classifier: `python train.py [options]` is `der-tf train [options]`.

Without arguments: adversarial training with RS-FGSM and DER on scikit-learn's digits, measured
with PGD and exported to saved_models/. `python train.py --help` lists the options.
"""

import sys

from der_tf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
