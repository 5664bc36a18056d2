"""``python -m align_gen``, and what ``accelerate launch -m align_gen`` starts."""

from align_gen.cli import main

if __name__ == "__main__":
    main()
