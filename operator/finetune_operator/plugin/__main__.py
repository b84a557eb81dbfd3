"""`python -m finetune_operator.plugin`."""

from finetune_operator.plugin import main

main()
