package ociarchive

import (
	"archive/tar"
	"bytes"
	"strings"
)

// IsArchive reports whether a stream that begins with prefix is an image, as
// opposed to a layer. The first header decides, where it is not a directory
// that both may begin with; give a few KiB, 512 bytes at least.
func IsArchive(prefix []byte) bool {
	tr := tar.NewReader(bytes.NewReader(prefix))
	for {
		h, err := tr.Next()
		if err != nil {
			return false
		}
		name := cleanName(h.Name)
		dir, rest, _ := strings.Cut(name, "/")
		switch {
		case h.Typeflag == tar.TypeDir && (name == "" || name == "blobs"):
			continue // tar -c . begins like this
		case name == "oci-layout", name == "index.json", name == "manifest.json", name == "repositories":
			return h.Typeflag == tar.TypeReg
		case dir == "blobs":
			return strings.HasPrefix(rest, "sha256") || strings.HasPrefix(rest, "sha512")
		}
		// docker save before version 25 begins with HEX.json, HEX.tar or HEX/.
		if _, ok := nameDigest(dir); ok {
			return true
		}
		return false
	}
}
