package oci

const (
	MaxManifest = 4 << 20 // bytes of a manifest or index; what registries accept
	MaxConfig   = 8 << 20 // bytes of a config
)

// Limits bounds what a registry or an archive can make this node do.
type Limits struct {
	Image    int64 // bytes of all blobs of an image, as transferred. Default 64 GiB
	Unpacked int64 // bytes of all files of one layer. Default 64 GiB
	Entries  int   // files in one layer. Default 2,000,000
	Layers   int   // layers of an image. Default 500 (overlayfs's own limit)
	MinFree  int64 // bytes that stay free on the disk. Default 256 MiB
}

// OrDefaults gives every limit that is not set its default.
func (l Limits) OrDefaults() Limits {
	def(&l.Image, 64<<30)
	def(&l.Unpacked, 64<<30)
	def(&l.Entries, 2_000_000)
	def(&l.Layers, 500)
	def(&l.MinFree, 256<<20)
	return l
}

func def[T int | int64](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}
