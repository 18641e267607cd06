"""Systems that are compared with and not trained by RB-FT: models behind APIs. Each takes the manifest's videos and gives `Prediction`s."""
