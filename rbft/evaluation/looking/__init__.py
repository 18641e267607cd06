"""What a model looks at: masks over objects (Table 5), attention on the frames (Figure 2), and the numbers and pictures of both."""
