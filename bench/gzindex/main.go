// Command gzindex measures gzindex against what else makes and uses
// checkpoints of gzip data: mkfs.erofs of the pinned erofs-utils
// (scripts/peers), gztool, and gzip -t, which makes none and only checks; and
// reads at random against compress/flate. The data is this machine's Go
// toolchain as a layer, or the gzip files named.
package main

import (
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	"github.com/layerpipe/layerpipe/internal/contest"
	"github.com/layerpipe/layerpipe/internal/peakmem"
	"github.com/layerpipe/layerpipe/internal/testimage"
)

func main() {
	peakmem.Init()
	log.SetFlags(0)
	log.SetPrefix("gzindex: ")
	var b bench
	flag.IntVar(&b.rounds, "rounds", 5, "turns of each contestant")
	bin := flag.String("bin", "bin", "directory of the commands")
	peers := flag.String("peers", ".peers/bin", "directory of mkfs.erofs")
	flag.Parse()
	if err := b.run(*bin, *peers, flag.Args()); err != nil {
		log.Fatal(err)
	}
}

type bench struct {
	dir          string
	ours, theirs string // commands
	rounds       int
}

func (b *bench) run(bin, peers string, files []string) (err error) {
	if b.dir, err = os.MkdirTemp("", "layerpipe-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	if b.ours, err = contest.Program(bin, "gzindex"); err != nil {
		return err
	}
	if b.theirs, err = contest.Program(peers, "mkfs.erofs"); err != nil {
		return err
	}
	if len(files) == 0 {
		name, err := b.toolchain()
		if err != nil {
			return err
		}
		files = []string{name}
	}
	for _, name := range files {
		fmt.Printf("\n%s\n", filepath.Base(name))
		if err := b.file(name); err != nil {
			return err
		}
	}
	return nil
}

// toolchain makes a layer of the Go toolchain, compressed by gzip as most are.
func (b *bench) toolchain() (string, error) {
	img, err := testimage.Build(filepath.Join(b.dir, "layout"), []testimage.Layer{
		{Compression: testimage.Plain, Write: func(b *testimage.Builder) { testimage.Toolchain(b, nil) }},
	})
	if err != nil {
		return "", err
	}
	name := filepath.Join(b.dir, "golang.tar.gz")
	return name, contest.Shell("gzip -c %s > %s", img.Blob(0), name)
}

func (b *bench) file(name string) error {
	out := func(suffix string) string { return filepath.Join(b.dir, "out"+suffix) }
	entrants := []contest.Entrant{
		{Name: "gzindex", Command: fmt.Sprintf("%s -q %s -o %s", b.ours, name, out(".zinfo")), Size: contest.SizeOf(out(".zinfo"))},
		{Name: "gzindex --sparse", Command: fmt.Sprintf("%s -q --sparse %s -o %s", b.ours, name, out(".sparse")), Size: contest.SizeOf(out(".sparse"))},
		{Name: "gzindex --seek", Command: fmt.Sprintf("%s -q --seek %s -o %s", b.ours, name, out(".seek")), Size: contest.SizeOf(out(".seek"))},
		{Name: "gzip -t", Command: "gzip -t < " + name},
	}
	if contest.Available("gztool") {
		entrants = append(entrants, contest.Entrant{Name: "gztool -i", Size: contest.SizeOf(out(".gzi")),
			Command: fmt.Sprintf("rm -f %[1]s; gztool -v 0 -s 4 -i -I %[1]s %[2]s", out(".gzi"), name)})
	}
	// It makes an index of the tar besides, which is little work.
	entrants = append(entrants, contest.Entrant{Name: "mkfs.erofs", Size: contest.SizeOf(out(".theirs")),
		Command: fmt.Sprintf("%s --quiet --tar=i --gzinfo=%s %s %s", b.theirs, out(".theirs"), out(".erofs"), name)})
	results, err := contest.Run(b.rounds, entrants...)
	if err != nil {
		return err
	}
	contest.Print(os.Stdout, "making an index, to mkfs.erofs", results)

	st, err := os.Stat(name)
	if err != nil {
		return err
	}
	gb := float64(st.Size()) / 1e9
	fmt.Printf("\nindex size, MB for each GB of gzip\n")
	for _, r := range results {
		if r.Size > 0 {
			fmt.Printf("%18s %8.2f\n", r.Name, float64(r.Size)/1e6/gb)
		}
	}
	if err := readInProcess(name, out(".zinfo"), b.rounds); err != nil {
		return err
	}
	return b.readByCommand(name, out(".zinfo"), out(".seek"), out(".gzi"))
}

// readByCommand compares commands that read 20 places, a process for each.
func (b *bench) readByCommand(name, zinfo, seek, gzi string) error {
	if !contest.Available("gztool") {
		return nil
	}
	size, err := uncompressed(name)
	if err != nil {
		return err
	}
	for _, n := range []int64{4 << 10, 128 << 10} {
		var offsets []string
		for k := range int64(20) {
			offsets = append(offsets, fmt.Sprint((size-n)/20*k+k*1000))
		}
		loop := func(name, command string) contest.Entrant {
			return contest.Entrant{Name: name, Command: fmt.Sprintf("for o in %s; do %s; done > /dev/null", strings.Join(offsets, " "), command)}
		}
		results, err := contest.Run(b.rounds,
			loop("gzindex --read", fmt.Sprintf("%s -q --read $o:%d --zinfo %s %s", b.ours, n, zinfo, name)),
			loop("with a seek section", fmt.Sprintf("%s -q --read $o:%d --zinfo %s %s", b.ours, n, seek, name)),
			loop("gztool -b", fmt.Sprintf("gztool -v 0 -I %s -b $o -r %d %s", gzi, n, name)))
		if err != nil {
			return err
		}
		contest.Print(os.Stdout, fmt.Sprintf("20 reads of %d KiB, a process each, to gztool", n>>10), results)
	}
	return nil
}
