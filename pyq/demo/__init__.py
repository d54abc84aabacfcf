"""The main job on real input: text lines read by an OCR model, in float and in int8 (`pyq demo`)."""
