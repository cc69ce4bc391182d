"""Contains the command lines beside elstm-train: evaluate, predict, export, report.

predict_series and prediction_rows belong to predict; programs and serving make exported programs.
"""
