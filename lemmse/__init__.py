"""What a trained CNN computes, exactly: MMSE estimators over a finite training set under architectural constraints."""
