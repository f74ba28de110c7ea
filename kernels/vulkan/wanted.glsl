// What is wanted of the logits of an output, after the outputs: 0 for all of them, or how many of the largest.
uint step_wanted(uint row) { return step_words[step_b.z + step_a.y + row]; }
