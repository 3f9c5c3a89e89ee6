package main

import (
	"archive/tar"
	"compress/gzip"
	"io"
	"log"
	"os"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// mktar is a command for the scripts: it writes the named files as a tar,
// compressed as its first argument's ending says. A name that ends in "/" is
// a directory, one with "->" a symbolic link; all others are files that hold
// their own name.
func mktar() {
	out, err := os.Create(os.Args[1])
	check(err)
	var w io.WriteCloser = out
	switch name := os.Args[1]; {
	case strings.HasSuffix(name, "gz"):
		w = gzip.NewWriter(out)
	case strings.HasSuffix(name, "zst"):
		w, err = zstd.NewWriter(out)
		check(err)
	case strings.HasSuffix(name, "xz"):
		w, err = xz.NewWriter(out)
		check(err)
	}
	tw := tar.NewWriter(w)
	for _, name := range os.Args[2:] {
		link, target, _ := strings.Cut(name, "->")
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(name))}
		switch {
		case strings.HasSuffix(name, "/"):
			h.Typeflag, h.Size, h.Mode = tar.TypeDir, 0, 0o755
		case target != "":
			h.Typeflag, h.Name, h.Linkname, h.Size = tar.TypeSymlink, link, target, 0
		}
		check(tw.WriteHeader(h))
		if h.Typeflag == tar.TypeReg {
			_, err := io.WriteString(tw, name)
			check(err)
		}
	}
	check(tw.Close())
	if w != out {
		check(w.Close())
	}
	check(out.Close())
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
