"""A Transformer of the Llama design, behind the language-model interface of the xLSTM."""
