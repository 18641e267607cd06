"""A person looks at a run's rationales before stage 1 learns them: on a page of her own machine, or in a spreadsheet."""
