package build_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"log"
	"os"

	"github.com/layerpipe/layerpipe/pkg/build"
	"github.com/layerpipe/layerpipe/pkg/erofs"
)

// Two layers become one file system: the upper one takes a file of the lower
// one away and adds another.
func ExampleImage() {
	// A tar in memory stands for a blob; compressed ones are recognized.
	layer := func(name string, files map[string]string) *build.Layer {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for path, data := range files {
			if err := w.WriteHeader(&tar.Header{Name: path, Mode: 0o644, Size: int64(len(data))}); err != nil {
				log.Fatal(err)
			}
			if _, err := w.Write([]byte(data)); err != nil {
				log.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			log.Fatal(err)
		}
		return &build.Layer{Name: name, Blob: &b}
	}
	layers := build.List(
		layer("lower", map[string]string{"etc/motd": "welcome", "etc/issue": "hello"}),
		layer("upper", map[string]string{"etc/.wh.motd": "", "bin/true": "#!/bin/sh"}),
	)

	temporary := func() *os.File {
		f, err := os.CreateTemp("", "example-")
		if err != nil {
			log.Fatal(err)
		}
		return f
	}
	image, tails := temporary(), temporary()
	defer os.Remove(image.Name())
	defer os.Remove(tails.Name())
	defer image.Close()
	defer tails.Close()
	res, err := build.Image(context.Background(), image, tails, layers, build.Options{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(res.Entries, "entries,", res.Inodes, "inodes")

	fsys, err := erofs.Open(image)
	if err != nil {
		log.Fatal(err)
	}
	files, err := fs.Glob(fsys, "*/*")
	fmt.Println(files, err)
	// Output:
	// 4 entries, 5 inodes
	// [bin/true etc/issue] <nil>
}
