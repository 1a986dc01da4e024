package main

func (b *bench) nftables() error { return nil }
