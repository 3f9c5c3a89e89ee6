package tarstream

import (
	"archive/tar"
	"bytes"
	"compress/bzip2"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

// goTestdata are the archives that the standard library's archive/tar is
// tested with, unpacked where they are packed.
func goTestdata(t testing.TB) map[string]string {
	t.Helper()
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		interop.Missing(t, "go env GOROOT: %v", err)
	}
	files, _ := filepath.Glob(filepath.Join(strings.TrimSpace(string(goroot)), "src/archive/tar/testdata/*.tar*"))
	if len(files) == 0 {
		interop.Missing(t, "no archive/tar/testdata in GOROOT")
	}
	archives := make(map[string]string)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(f)
		switch filepath.Ext(name) {
		case ".bz2":
			b, err = io.ReadAll(bzip2.NewReader(bytes.NewReader(b)))
		case ".base64":
			b, err = base64.StdEncoding.DecodeString(string(b))
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		archives[name] = string(b)
	}
	return archives
}

// testtar is CPython's archive with one of everything that tarfile reads.
func testtar(t testing.TB) string {
	t.Helper()
	python := interop.Tool(t, "python3")
	out, err := exec.Command(python, "-c", "import test, glob, os\n"+
		"for d in ('archivetestdata', '.'):\n"+
		"  for f in glob.glob(os.path.join(test.__path__[0], d, 'testtar.tar')): print(f)").Output()
	for f := range strings.Lines(string(out)) {
		if b, err := os.ReadFile(strings.TrimSpace(f)); err == nil {
			return string(b)
		}
	}
	interop.Missing(t, "python3 has no test suite with testtar.tar: %v", err)
	return ""
}

// maxSum is how long a file may be for its contents to be compared, holes
// included.
const maxSum = 16 << 20

// An other is an entry as another reader sees it. The zero value of a pointer
// says that the reader does not tell.
type other struct {
	Name, Linkname   string
	Type             byte
	Mode, UID, GID   int64
	Mtime, MtimeNsec int64
	Major, Minor     int64
	Size             int64
	Sum              string
	Xattrs           string // SCHILY's, sorted, quoted
}

func describe(m member, withXattrs bool) other {
	o := other{Name: m.Name, Linkname: m.Linkname, Type: m.Type, Mode: int64(m.Mode), UID: int64(m.UID), GID: int64(m.GID),
		Mtime: m.Mtime, MtimeNsec: int64(m.MtimeNsec), Major: int64(m.Devmajor), Minor: int64(m.Devminor), Size: m.Size}
	if m.Type == TypeRegular && m.Size <= maxSum {
		o.Sum = sum(expand(m))
	}
	if withXattrs {
		for _, x := range m.Xattrs {
			o.Xattrs += fmt.Sprintf("%s=%q ", x.Name, x.Value)
		}
	}
	return o
}

// expand is a file's contents, holes included.
func expand(m member) string {
	if m.Sparse == nil {
		return m.data
	}
	b := make([]byte, m.Size)
	for data := m.data; len(m.Sparse) > 0; m.Sparse = m.Sparse[1:] {
		n := copy(b[m.Sparse[0].Offset:][:m.Sparse[0].Length], data)
		data = data[n:]
	}
	return string(b)
}

func sum(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:8])
}

// readArchiveTar is what the standard library sees. It has no say on what it
// does not do: global headers are its caller's affair, and so they are skipped;
// so is Solaris's X, which it takes for a file.
func readArchiveTar(t testing.TB, archive string) (entries []other, err error) {
	tr := tar.NewReader(strings.NewReader(archive))
	for {
		h, err := tr.Next()
		if err != nil {
			return entries, err
		}
		if h.Typeflag == tar.TypeXGlobalHeader || h.Typeflag == 'X' {
			continue
		}
		o := other{Name: h.Name, Linkname: h.Linkname, Type: h.Typeflag, Mode: h.Mode & 0o7777,
			UID: int64(uint32(h.Uid)), GID: int64(uint32(h.Gid)), // int may have 32 bits
			Mtime: h.ModTime.Unix(), MtimeNsec: int64(h.ModTime.Nanosecond()), Major: h.Devmajor, Minor: h.Devminor, Size: h.Size}
		switch o.Type {
		case tar.TypeGNUSparse, tar.TypeCont:
			o.Type = TypeRegular
		case 'D':
			o.Type = TypeDir
		}
		if o.Type != TypeChar && o.Type != TypeBlock {
			o.Major, o.Minor = 0, 0
		}
		if o.Type != TypeRegular {
			o.Size = 0 // it gives the size of what has no contents
		} else if h.Size <= maxSum {
			b, err := io.ReadAll(tr)
			if err != nil {
				return entries, err
			}
			o.Sum = sum(string(b))
		}
		var names []string
		for k := range h.PAXRecords {
			if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		for _, name := range names {
			o.Xattrs += fmt.Sprintf("%s=%q ", name, h.PAXRecords["SCHILY.xattr."+name])
		}
		entries = append(entries, o)
	}
}

// pyScript lists archives as JSON, one member a line; strings in hex. After
// each archive comes a line with what stopped it, if anything did.
const pyScript = `
import sys, tarfile, json, hashlib, math
hx = lambda s: s.encode("utf-8", "surrogateescape").hex()
def members(file):
    t = tarfile.open(file, "r:", encoding="utf-8", errors="surrogateescape")
    for m in t:
        typ = m.type.decode("latin-1")
        if typ in "\0007S": typ = "0"
        if typ == "D" : typ = "5"
        sec = math.floor(m.mtime)
        o = dict(Name=hx(m.name + ("/" if m.isdir() else "")), Linkname=hx(m.linkname), Type=ord(typ), Mode=m.mode & 0o7777, UID=m.uid, GID=m.gid,
                 Mtime=sec, MtimeNsec=round((m.mtime - sec) * 1e9), Major=0, Minor=0, Size=0)
        if typ in "34": o["Major"], o["Minor"] = m.devmajor, m.devminor
        if m.isreg():
            o["Size"] = m.size
            if m.size <= int(sys.argv[1]): o["Sum"] = hashlib.sha256(t.extractfile(m).read()).hexdigest()[:16]
        yield o
for file in sys.argv[2:]:
    error = ""
    try:
        for o in members(file): print(json.dumps(o))
    except Exception as e:
        error = str(e) or "error"
    print(json.dumps(dict(End=1, Error=error)))
`

// A pyList is what CPython's tarfile sees of an archive; it keeps no slash at
// the end of a name, times as floats, and no xattrs.
type pyList struct {
	entries []other
	err     string
}

func readPython(t testing.TB, archives map[string]string) map[string]pyList {
	t.Helper()
	args := []string{"-c", pyScript, fmt.Sprint(maxSum)}
	dir := t.TempDir()
	for name, archive := range archives {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(archive), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, file)
	}
	names := args[3:]
	lists := make(map[string]pyList)
	var list pyList
	for line := range bytes.Lines(interop.Run(t, append([]string{interop.Tool(t, "python3")}, args...)...)) {
		var o struct {
			other
			End   int
			Error string
		}
		if err := json.Unmarshal(line, &o); err != nil {
			t.Fatal(err)
		}
		if o.End != 0 {
			list.err = o.Error
			lists[filepath.Base(names[len(lists)])], list = list, pyList{}
			continue
		}
		for _, s := range []*string{&o.Name, &o.Linkname} {
			b, err := hex.DecodeString(*s)
			if err != nil {
				t.Fatal(err)
			}
			*s = string(b)
		}
		list.entries = append(list.entries, o.other)
	}
	return lists
}

// compare lists where two readings differ, one line each, "member: field ours,
// theirs".
func compare(ours, theirs []other, python bool) (lines []string) {
	for i := range max(len(ours), len(theirs)) {
		if i >= len(theirs) {
			lines = append(lines, fmt.Sprintf("%.40q: only here", ours[i].Name))
			continue
		}
		if i >= len(ours) {
			lines = append(lines, fmt.Sprintf("%.40q: only there", theirs[i].Name))
			continue
		}
		a, b := ours[i], theirs[i]
		field := func(name string, x, y any) {
			if x != y {
				lines = append(lines, strings.ReplaceAll(fmt.Sprintf("%.40q: %s %v, %v", a.Name, name, x, y), "\x00", `\0`))
			}
		}
		if python {
			a.Name, b.Name = strings.TrimRight(a.Name, "/"), strings.TrimRight(b.Name, "/")
			a.Xattrs = ""
			if d := (a.Mtime-b.Mtime)*1e9 + a.MtimeNsec - b.MtimeNsec; -1000 < d && d < 1000 {
				a.Mtime, a.MtimeNsec = b.Mtime, b.MtimeNsec // as near as a float comes
			}
		}
		field("name", a.Name, b.Name)
		field("link", a.Linkname, b.Linkname)
		field("type", string(a.Type), string(b.Type))
		field("mode", a.Mode, b.Mode)
		field("uid", a.UID, b.UID)
		field("gid", a.GID, b.GID)
		field("mtime", a.Mtime, b.Mtime)
		field("ns", a.MtimeNsec, b.MtimeNsec)
		field("major", a.Major, b.Major)
		field("minor", a.Minor, b.Minor)
		field("size", a.Size, b.Size)
		field("contents", a.Sum, b.Sum)
		field("xattrs", a.Xattrs, b.Xattrs)
	}
	return lines
}

func readOurs(t testing.TB, archive string) ([]other, error) {
	members, _, err := read(t, archive)
	var entries []other
	for _, m := range members {
		slices.SortFunc(m.Xattrs, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
		entries = append(entries, describe(m, true))
	}
	return entries, err
}

// endings says which of archive/tar's archives do not end with a marker.
var endings = map[string]error{
	"gnu-incremental.tar":           ErrNoEndMarker,
	"gnu-multi-hdrs.tar":            ErrNoEndMarker,
	"nil-uid.tar":                   ErrNoEndMarker,
	"pax-multi-hdrs.tar":            ErrNoEndMarker,
	"pax-pos-size-file.tar":         ErrNoEndMarker,
	"ustar-file-reg.tar":            ErrNoEndMarker,
	"gnu-sparse-many-zeros.tar.bz2": fault.ErrUnsupported, // ten million runs
	"issue10968.tar":                fault.ErrUnsupported, // junk; it starts with a negative uid
	"neg-size.tar.base64":           fault.ErrUnsupported,
	"issue12435.tar":                fault.ErrCorrupt, // a size of 96 bits
	"issue11169.tar":                io.ErrUnexpectedEOF,
	"pax-bad-hdr-file.tar":          fault.ErrCorrupt,
	"pax-bad-mtime-file.tar":        fault.ErrCorrupt,
	"pax-nul-path.tar":              fault.ErrCorrupt,
	"pax-nul-xattrs.tar":            fault.ErrUnsupported,
	"pax-path-hdr.tar":              io.ErrUnexpectedEOF, // an extended header, and nothing behind it
	"writer-big.tar":                io.ErrUnexpectedEOF, // a file of 16 GiB without its data
	"writer-big-long.tar.base64":    io.ErrUnexpectedEOF,
}

// A difference is where we read an archive unlike another reader does, as a
// prefix of compare's line, and why.
type difference struct{ archive, line, why string }

var fromArchiveTar = []difference{
	{"pax-global-records.tar", `"global1": name global1, file1`, "global headers are not applied there"},
	{"pax-global-records.tar", `"global1": mtime 1500000000, 0`, "global headers are not applied there"},
	{"pax-global-records.tar", `"file2": mtime 1500000000, 0`, "global headers are not applied there"},
	{"pax-global-records.tar", `"file3": mtime 1500000000, 0`, "global headers are not applied there"},
	{"pax-bad-hdr-large.tar.bz2", `"XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX": only here`, "its bound on extended headers is lower"},
	{"testtar.tar", `"gnu/regtype-gnu-uid": uid 0, 4294967295`, "chown(-1) leaves root"},
	{"testtar.tar", `"gnu/regtype-gnu-uid": gid 0, 4294967295`, "chown(-1) leaves root"},
	{"testtar.tar", `"misc/regtype-suntar": mtime 1041808783, 1168349624`, "Solaris's X is not applied there"},
}

// fromPython differs by version; so what stands here may differ, not must.
var fromPython = []difference{
	{"gnu-incremental.tar", `"test2": name test2, 12574544345/test2`, "takes the times under GNU's magic for a prefix"},
	{"gnu-incremental.tar", `"test2/foo": name test2/foo, 12574544345/test2/foo`, "takes the times under GNU's magic for a prefix"},
	{"gnu-multi-hdrs.tar", `"GNU2/GNU2/long-path-name":`, "of repeated headers the first wins; in GNU tar and libarchive the last"},
	{"pax-multi-hdrs.tar", `"bar":`, "of repeated headers the first wins; in GNU tar and libarchive the last"},
	{"pax-bad-hdr-file.tar", "", "skips a bad header"},
	{"pax-bad-mtime-file.tar", "", "reads a bad time as 0"},
	{"pax-nul-path.tar", "", "takes a path with a NUL"},
	{"pax-nul-xattrs.tar", "", "takes no notice of xattrs"},
	{"pax-global-records.tar", `"file3": name file3, `, "an empty path is an empty name there, and nothing can be unpacked under it"},
	{"pax-global-records.tar", `"file4": name file4, `, "an empty path is an empty name there, and nothing can be unpacked under it"},
	{"pax-nil-sparse-data.tar", `"sparse.db":`, "does not know sparse format 1.0 without a name"},
	{"pax-nil-sparse-hole.tar", `"sparse.db":`, "does not know sparse format 1.0 without a name"},
	{"pax-sparse-big.tar.base64", `"pax-sparse":`, "does not know sparse format 1.0 without a name"},
	{"testtar.tar", `"gnu/regtype-gnu-uid": uid 0, 4294967295`, "chown(-1) leaves root"},
	{"testtar.tar", `"gnu/regtype-gnu-uid": gid 0, 4294967295`, "chown(-1) leaves root"},
	{"writer-big.tar", "", "does not look for the data"},
	{"writer-big-long.tar.base64", "", "does not look for the data"},
}

// explained takes the lines that the table knows out, and counts its rows.
func explained(archive string, lines []string, table []difference, used []int) (rest []string) {
next:
	for _, line := range lines {
		for i, d := range table {
			if d.archive == archive && strings.HasPrefix(line, d.line) {
				used[i]++
				continue next
			}
		}
		rest = append(rest, line)
	}
	return rest
}

func TestCorpus(t *testing.T) {
	archives := goTestdata(t)
	if n := len(archives); n < 40 {
		t.Errorf("only %d archives in GOROOT", n)
	}
	checkCorpus(t, archives, fromArchiveTar[:5], true)
}

func TestCorpusPython(t *testing.T) {
	checkCorpus(t, map[string]string{"testtar.tar": testtar(t)}, fromArchiveTar[5:], true)
}

// checkCorpus reads archives, compares with archive/tar and, where it is at
// hand, CPython's tarfile.
func checkCorpus(t *testing.T, archives map[string]string, known []difference, strict bool) {
	var python map[string]pyList
	_, noPython := exec.LookPath("python3")
	if noPython == nil {
		rest := maps.Clone(archives)
		delete(rest, "gnu-sparse-many-zeros.tar.bz2") // it takes half a minute for the ten million runs
		python = readPython(t, rest)
	}
	used, usedPython := make([]int, len(known)), make([]int, len(fromPython))
	for name, archive := range archives {
		ours, err := readOurs(t, archive)
		want := endings[name]
		if want == nil {
			want = io.EOF
		}
		if !errors.Is(err, want) {
			t.Errorf("%s: ends with %v, want %v", name, err, want)
		}
		theirs, _ := readArchiveTar(t, archive)
		refused := err != io.EOF && err != ErrNoEndMarker
		if refused {
			theirs = theirs[:min(len(ours), len(theirs))]
		}
		for _, line := range explained(name, compare(ours, theirs, false), known, used) {
			t.Errorf("%s: archive/tar: %s", name, line)
		}
		list, ok := python[name]
		if !ok || refused && list.err != "" && len(list.entries) == 0 {
			continue
		}
		for _, line := range explained(name, compare(ours, list.entries, true), fromPython, usedPython) {
			t.Errorf("%s: tarfile: %s", name, line)
		}
	}
	for i, n := range used {
		if n == 0 && strict {
			t.Errorf("%v: no such difference", known[i])
		}
	}
	if noPython != nil {
		interop.Missing(t, "no python3 for the second opinion")
	}
}
