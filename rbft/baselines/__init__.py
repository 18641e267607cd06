"""Systems that RB-FT is compared with: models behind APIs, and video classifiers fine-tuned on the same split. Each takes the manifest's
videos and gives `Prediction`s."""
