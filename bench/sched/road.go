package main

func road(int) (float64, error) { return 0, nil }
