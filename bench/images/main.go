// Command images measures tar2erofs against mkfs.erofs of the pinned
// erofs-utils (scripts/peers) on the same input: whole images and indexes, of
// this machine's Go toolchain.
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
	log.SetPrefix("images: ")
	rounds := flag.Int("rounds", 5, "turns of each contestant")
	bin := flag.String("bin", "bin", "directory of the commands")
	peers := flag.String("peers", ".peers/bin", "directory of mkfs.erofs")
	million := flag.Bool("million", false, "a layer of a million small files, too")
	flag.Parse()
	if err := run(*rounds, *bin, *peers, *million); err != nil {
		log.Fatal(err)
	}
}

type bench struct {
	dir          string
	ours, theirs string // commands
	rounds       int
}

func run(rounds int, bin, peers string, million bool) error {
	dir, err := os.MkdirTemp("", "layerpipe-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := bench{dir: dir, rounds: rounds}
	if b.ours, err = contest.Program(bin, "tar2erofs"); err != nil {
		return err
	}
	if b.theirs, err = contest.Program(peers, "mkfs.erofs"); err != nil {
		return err
	}
	// The toolchain as one layer, and cut into two.
	part := func(parts ...string) testimage.Layer {
		return testimage.Layer{Write: func(b *testimage.Builder) { testimage.Toolchain(b, parts) }}
	}
	img, err := testimage.Build(filepath.Join(dir, "layout"), []testimage.Layer{
		part(), part("VERSION", "src"), part("VERSION", "bin", "pkg", "lib", "misc", "test", "api", "doc"),
	})
	if err != nil {
		return err
	}
	golang, lower, upper := img.Blob(0), img.Blob(1), img.Blob(2)
	plain := filepath.Join(dir, "golang.tar")
	if err := contest.Shell("gzip -dc %s > %s", golang, plain); err != nil {
		return err
	}

	for _, c := range []struct{ title, ours, theirs string }{
		{"whole image of a gzip layer", "OURS OUT " + golang, "THEIRS --tar=f --gzip OUT " + golang},
		{"whole image of a plain tar", "OURS OUT " + plain, "THEIRS --tar=f OUT " + plain},
	} {
		if err := b.contest(c.title, c.ours, c.theirs, []string{"OUT"}, []string{"OUT"}); err != nil {
			return err
		}
	}
	// mkfs.erofs takes one tar a run; that its two images are not merged yet is
	// to its advantage.
	if err := b.contest("whole image of two gzip layers", "OURS OUT "+lower+" "+upper,
		"THEIRS --tar=f --gzip OUT "+lower+" && THEIRS --tar=f --gzip OUT.1 "+upper,
		[]string{"OUT"}, []string{"OUT", "OUT.1"}); err != nil {
		return err
	}
	if err := b.contest("index of a gzip layer, with checkpoints", "OURS -i OUT "+golang, "THEIRS --tar=i --gzinfo=OUT.zinfo OUT "+golang,
		[]string{"OUT"}, []string{"OUT", "OUT.zinfo"}); err != nil {
		return err
	}
	if err := b.manyNames(); err != nil {
		return err
	}
	if million {
		return b.million()
	}
	return nil
}

// contest runs one pair. In the commands OUT is the output's name; sizes are
// those of the named outputs together.
func (b *bench) contest(title, ours, theirs string, oursOut, theirsOut []string) error {
	entrant := func(name, command string, outputs []string) contest.Entrant {
		out := filepath.Join(b.dir, name+".out")
		r := strings.NewReplacer("OURS", b.ours, "THEIRS", b.theirs+" --quiet", "OUT", out)
		files := make([]string, len(outputs))
		for i, o := range outputs {
			files[i] = r.Replace(o)
		}
		return contest.Entrant{
			Name: name, Command: r.Replace(command),
			Before: func() error { return contest.Shell("rm -f %s*; sync", out) },
			Size:   contest.SizeOf(files...),
		}
	}
	results, err := contest.Run(b.rounds, entrant("tar2erofs", ours, oursOut), entrant("mkfs.erofs", theirs, theirsOut))
	if err != nil {
		return err
	}
	contest.Print(os.Stdout, title, results)
	return nil
}

// manyNames compares directories of 20 000 and 200 000 files with each other:
// linear time is a ratio of 10.
func (b *bench) manyNames() error {
	var entrants []contest.Entrant
	for _, n := range []int{200_000, 20_000} {
		name := filepath.Join(b.dir, fmt.Sprint(n))
		if err := manyFiles(name, n, n); err != nil {
			return err
		}
		entrants = append(entrants, contest.Entrant{Name: fmt.Sprintf("%d files", n), Command: fmt.Sprintf("%s %s.erofs %s", b.ours, name, name)})
	}
	results, err := contest.Run(b.rounds, entrants...)
	if err != nil {
		return err
	}
	contest.Print(os.Stdout, "one directory of many files (10 is linear)", results)
	return nil
}

func (b *bench) million() error {
	name := filepath.Join(b.dir, "million")
	if err := manyFiles(name, 1_000_000, 1000); err != nil {
		return err
	}
	b.rounds = 1
	for _, c := range []struct{ title, ours, theirs string }{
		{"a million small files, whole", "OURS OUT " + name, "THEIRS --tar=f OUT " + name},
		{"a million small files, index", "OURS -i OUT " + name, "THEIRS --tar=i OUT " + name},
	} {
		if err := b.contest(c.title, c.ours, c.theirs, []string{"OUT"}, []string{"OUT"}); err != nil {
			return err
		}
	}
	return nil
}

// manyFiles writes a tar of n files of 100 bytes, so many in a directory.
func manyFiles(name string, n, inDir int) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	b := testimage.NewBuilder(f)
	data := strings.Repeat("x", 100)
	for i := range n {
		b.File(fmt.Sprintf("dir%04d/file%07d.txt", i/inDir, i), 0o644, data)
	}
	return b.Close()
}
