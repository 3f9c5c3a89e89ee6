// Command registry measures oci-fetch, alone and in front of tar2erofs, against
// what else fetches images: mkfs.erofs of the pinned erofs-utils
// (scripts/peers), curl, skopeo, and itself over fewer connections. The images
// are of this machine's Go toolchain, in a registry of this process.
package main

import (
	"crypto/rand"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/layerpipe/layerpipe/internal/contest"
	"github.com/layerpipe/layerpipe/internal/peakmem"
	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/internal/testregistry"
)

func main() {
	peakmem.Init()
	log.SetFlags(0)
	log.SetPrefix("registry: ")
	b := bench{}
	flag.IntVar(&b.rounds, "rounds", 9, "turns of each contestant")
	flag.StringVar(&b.bin, "bin", "bin", "directory of the commands")
	flag.StringVar(&b.peers, "peers", ".peers/bin", "directory of mkfs.erofs")
	only := flag.String("only", "abcd", "which of the contests")
	flag.Parse()
	if err := b.run(*only); err != nil {
		log.Fatal(err)
	}
}

type bench struct {
	rounds     int
	bin, peers string
	dir        string
	img        *testimage.Image
	host       string // of the registry
}

func (b *bench) run(only string) (err error) {
	if b.dir, err = os.MkdirTemp("", "layerpipe-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	for _, dir := range []*string{&b.bin, &b.peers} {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return err
		}
	}
	part := func(parts ...string) testimage.Layer {
		return testimage.Layer{Write: func(b *testimage.Builder) { testimage.Toolchain(b, parts) }}
	}
	// Without whiteouts: mkfs.erofs would not apply them alike.
	b.img, err = testimage.Build(filepath.Join(b.dir, "layout"), []testimage.Layer{
		part("VERSION", "src"), part("VERSION", "bin", "pkg", "lib", "misc", "test", "api", "doc"),
	})
	if err != nil {
		return err
	}
	reg := testregistry.New()
	if err := reg.AddLayout("golang", b.img.Dir); err != nil {
		return err
	}
	blob := make([]byte, 96<<20)
	rand.Read(blob)
	big, err := testimage.Build(filepath.Join(b.dir, "big"), []testimage.Layer{{
		Compression: testimage.Plain, Write: func(t *testimage.Builder) { t.File("big", 0o644, string(blob)) },
	}})
	if err != nil {
		return err
	}
	if err := reg.AddLayout("big", big.Dir); err != nil {
		return err
	}
	var stop func()
	if b.host, stop, err = reg.Listen(); err != nil {
		return err
	}
	defer stop()
	for _, c := range []struct {
		letter string
		run    func() error
	}{{"a", b.wholeImage}, {"b", b.slowLine}, {"c", b.slowConnections}, {"d", b.toFile}} {
		if strings.Contains(only, c.letter) {
			if err := c.run(); err != nil {
				return err
			}
		}
	}
	return nil
}

// contest runs entrants, the peer last. In the commands FETCH, BUILD and MKFS
// are the programs, OUT is an output of the entrant's own.
func (b *bench) contest(title string, entrants ...contest.Entrant) error {
	for i := range entrants {
		e := &entrants[i]
		out := filepath.Join(b.dir, fmt.Sprintf("out-%d", i))
		e.Command = strings.NewReplacer(
			"FETCH", filepath.Join(b.bin, "oci-fetch")+" --plain-http",
			"BUILD", filepath.Join(b.bin, "tar2erofs"),
			"MKFS", filepath.Join(b.peers, "mkfs.erofs")+" --quiet",
			"OUT", out).Replace(e.Command)
		e.Before = func() error { return contest.Shell("rm -f %s*; sync %s", out, b.dir) }
		e.Size = func() (int64, error) {
			st, err := os.Stat(out)
			if os.IsNotExist(err) {
				return 0, nil // it went to /dev/null
			}
			if err != nil {
				return 0, err
			}
			return st.Size(), nil
		}
	}
	results, err := contest.Run(b.rounds, entrants...)
	if err != nil {
		return err
	}
	contest.Print(os.Stdout, title, results)
	return nil
}

// wholeImage is from a registry nearby to a whole image.
func (b *bench) wholeImage() error {
	if _, err := contest.Program(b.peers, "mkfs.erofs"); err != nil {
		return err
	}
	ref := b.host + "/golang:latest"
	return b.contest("(a) whole image from a registry nearby, no whiteouts",
		contest.Entrant{Name: "oci-fetch | tar2erofs", Command: "FETCH " + ref + " | BUILD OUT"},
		contest.Entrant{Name: "mkfs.erofs --oci=f", Command: "MKFS --oci=f,insecure,platform=linux/" + runtime.GOARCH + " OUT " + ref})
}

// slowLine is an index over a line of 1 Gbit/s and 20 ms: does the conversion
// hide under the download?
func (b *bench) slowLine() error {
	p, err := listen(b.host, 10*time.Millisecond, 125e6, false)
	if err != nil {
		return err
	}
	defer p.Close()
	var urls []string
	for _, l := range b.img.Layers {
		urls = append(urls, fmt.Sprintf("-o /dev/null http://%s/v2/golang/blobs/%s", p.host(), l.Digest))
	}
	return b.contest("(b) index over 1 Gbit/s and 20 ms",
		contest.Entrant{Name: "oci-fetch | tar2erofs -i", Command: "FETCH " + p.host() + "/golang | BUILD -i OUT"},
		contest.Entrant{Name: "oci-fetch > /dev/null", Command: "FETCH " + p.host() + "/golang | cat > /dev/null"},
		contest.Entrant{Name: "curl > /dev/null", Command: "curl -sSf " + strings.Join(urls, " ")})
}

// slowConnections is one large blob where each connection is slow.
func (b *bench) slowConnections() error {
	p, err := listen(b.host, 10*time.Millisecond, 25e6, true)
	if err != nil {
		return err
	}
	defer p.Close()
	return b.contest("(c) one blob of 96 MiB, 25 MB/s for each connection",
		contest.Entrant{Name: "oci-fetch -j 4", Command: "FETCH -j 4 --layer 0 " + p.host() + "/big > OUT"},
		contest.Entrant{Name: "oci-fetch -j 4, the image", Command: "FETCH -j 4 " + p.host() + "/big > OUT"},
		contest.Entrant{Name: "oci-fetch -j 1", Command: "FETCH -j 1 --layer 0 " + p.host() + "/big > OUT"})
}

// toFile is from a registry nearby to an archive, and the memory that it takes.
func (b *bench) toFile() error {
	if !contest.Available("skopeo") {
		return fmt.Errorf("no skopeo")
	}
	ref := b.host + "/golang:latest"
	err := b.contest("(d) archive from a registry nearby",
		contest.Entrant{Name: "oci-fetch", Command: "FETCH -o OUT " + ref},
		// skopeo syncs its temporary files, so the one above gains by how slow the
		// disk is.
		contest.Entrant{Name: "oci-fetch, synced", Command: "FETCH -o OUT " + ref + " && sync OUT"},
		contest.Entrant{Name: "skopeo copy", Command: "skopeo --tmpdir " + b.dir + " --insecure-policy copy --quiet --preserve-digests --src-tls-verify=false docker://" + ref + " oci-archive:OUT"})
	if err != nil {
		return err
	}
	var each []contest.Entrant
	for _, j := range []int{64, 32, 16, 8, 4, 3, 2, 1} {
		each = append(each, contest.Entrant{Name: fmt.Sprintf("-j %d", j), Command: fmt.Sprintf("FETCH -j %d -o OUT %s", j, ref)})
	}
	return b.contest("(d) memory over the number of connections", each...)
}
