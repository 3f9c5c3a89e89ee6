package ociimage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// memory is a Fetcher over what was put into it.
type memory map[digest.Digest][]byte

func (m memory) put(mediaType string, v any) ocispec.Descriptor {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	m[d.Digest] = b
	return d
}

func (m memory) get(d ocispec.Descriptor) ([]byte, error) {
	b, ok := m[d.Digest]
	if !ok {
		return nil, fault.ErrNotFound
	}
	return b, VerifyBytes(b, d)
}

func (m memory) FetchManifest(_ context.Context, d ocispec.Descriptor) ([]byte, error) {
	return m.get(d)
}
func (m memory) FetchConfig(_ context.Context, d ocispec.Descriptor) ([]byte, error) { return m.get(d) }

// artifact puts what has an image's manifest and is none.
func (m memory) artifact(name string) ocispec.Descriptor {
	config := m.put("application/vnd.test.config", ocispec.Image{Author: name})
	man := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{}}
	man.SchemaVersion = 2
	return m.put(ocispec.MediaTypeImageManifest, man)
}

// image puts an image for a platform; what tells one from the other is the
// author in its config.
func (m memory) image(platform, author string) ocispec.Descriptor {
	p := mustPlatform(platform)
	config := m.put(ocispec.MediaTypeImageConfig, ocispec.Image{Author: author, Platform: *p})
	man := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{}}
	man.SchemaVersion = 2
	d := m.put(ocispec.MediaTypeImageManifest, man)
	d.Platform = p
	return d
}

func (m memory) index(list ...ocispec.Descriptor) ocispec.Descriptor {
	x := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: list}
	x.SchemaVersion = 2
	return m.put(ocispec.MediaTypeImageIndex, x)
}

func (m memory) resolve(root ocispec.Descriptor, platform string) (author string, err error) {
	var p *ocispec.Platform
	if platform != "" {
		p = mustPlatform(platform)
	}
	img, err := Resolve(context.Background(), m, root, m[root.Digest], p)
	if err != nil {
		return "", err
	}
	var c ocispec.Image
	err = json.Unmarshal(img.ConfigBytes, &c)
	return c.Author, err
}

func mustPlatform(s string) *ocispec.Platform {
	s, version, _ := strings.Cut(s, ":")
	parts := append(strings.Split(s, "/"), "", "")
	return &ocispec.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2], OSVersion: version}
}

func TestResolvePlatforms(t *testing.T) {
	m := memory{}
	attestation := m.image("unknown/unknown", "attestation")
	attestation.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	unnamed := func(d ocispec.Descriptor) ocispec.Descriptor { d.Platform = nil; return d }
	windows := m.image("windows/amd64", "windows")
	windows.Platform.OSVersion = "10.0.1"
	features := m.image("linux/amd64", "with a feature")
	features.Platform.OSFeatures = []string{"sse9"}
	artifact, other := m.artifact("artifact"), m.artifact("another")
	later, earlier := m.image("windows/amd64", "later"), m.image("windows/amd64", "earlier")
	later.Platform.OSVersion, earlier.Platform.OSVersion = "10.0.2.7", "10.0.17.5"
	versions := m.index(earlier, later)
	many := m.index(m.image("linux/arm/v6", "v6"), m.image("linux/arm/v7", "v7"), attestation, m.image("linux/amd64", "amd64"),
		m.image("linux/amd64/v3", "amd64v3"), m.image("linux/arm64/v8", "arm64"), windows, m.image("linux/riscv64", "riscv"))
	nested := m.index(m.index(attestation), m.index(m.index(m.image("linux/amd64", "deep"))), m.image("linux/s390x", "s390x"))
	for _, tt := range []struct {
		name     string
		root     ocispec.Descriptor
		platform string
		want     string // "": not found
	}{
		{"plain", many, "linux/amd64", "amd64"},
		{"arm64 is arm64/v8", many, "linux/arm64", "arm64"},
		{"arm64/v8", many, "linux/arm64/v8", "arm64"},
		{"a later arm64 runs v8", many, "linux/arm64/v9", "arm64"},
		{"the variant itself", many, "linux/amd64/v3", "amd64v3"},
		{"the best below", many, "linux/amd64/v4", "amd64v3"},
		{"none above", many, "linux/amd64/v2", "amd64"},
		{"arm is v7", many, "linux/arm", "v7"},
		{"v6", many, "linux/arm/v6", "v6"},
		{"no v5", many, "linux/arm/v5", ""},
		{"another spelling", many, "linux/aarch64", "arm64"},
		{"windows", many, "windows/amd64", "windows"},
		{"its version", versions, "windows/amd64:10.0.2.7", "later"},
		{"the start of its version", versions, "windows/amd64:10.0.2", "later"},
		{"no version that begins so", versions, "windows/amd64:10.0.2.77", ""},
		{"part of a number", versions, "windows/amd64:10.0.1", ""},
		{"any version", versions, "windows/amd64", "earlier"},
		{"not there", many, "linux/ppc64le", ""},
		{"attestations are not images", m.index(attestation), "unknown/unknown", ""},
		{"nested", nested, "linux/amd64", "deep"},
		{"direct before nested", m.index(m.index(m.image("linux/amd64", "deep")), m.image("linux/amd64", "direct")), "linux/amd64", "direct"},
		{"a feature that is not wanted", m.index(features), "linux/amd64", ""},
		{"a feature beside none", m.index(features, m.image("linux/amd64", "without")), "linux/amd64", "without"},
		{"one without a platform", m.index(unnamed(m.image("linux/amd64", "alone"))), "linux/amd64", "alone"},
		{"one without, of another platform", m.index(unnamed(m.image("linux/s390x", "alone"))), "linux/amd64", ""},
		{"several without", m.index(unnamed(m.image("linux/s390x", "one")), unnamed(m.image("linux/amd64", "two"))), "linux/amd64", "two"},
		{"an artifact beside images", m.index(artifact, m.image("linux/arm64", "arm64")), "linux/amd64", ""},
		{"an artifact before one without a platform", m.index(artifact, unnamed(m.image("linux/amd64", "two"))), "linux/amd64", "two"},
		{"an artifact beside one without, of another platform", m.index(artifact, unnamed(m.image("linux/s390x", "one"))), "linux/amd64", ""},
		{"an artifact alone", m.index(artifact), "linux/amd64", "artifact"},
		{"artifacts", m.index(artifact, other), "linux/amd64", "artifact"},
		{"no index", m.image("linux/amd64", "itself"), "linux/amd64", "itself"},
		{"no index, another platform", m.image("linux/amd64", "itself"), "linux/s390x", ""},
		{"no index, nothing asked for", m.image("plan9/mips", "itself"), "", "itself"},
		{"default", m.index(m.image(FormatPlatform(DefaultPlatform()), "host")), "", "host"},
		{"empty index", m.index(), "linux/amd64", ""},
	} {
		got, err := m.resolve(tt.root, tt.platform)
		if tt.want != "" && (err != nil || got != tt.want) || tt.want == "" && !errors.Is(err, fault.ErrNotFound) {
			t.Errorf("%s: %q, %v, want %q", tt.name, got, err, tt.want)
		}
	}
	_, err := m.resolve(many, "linux/ppc64le")
	for _, have := range []string{"linux/ppc64le", "linux/arm/v6", "windows/amd64", "linux/riscv64"} {
		if !strings.Contains(fmt.Sprint(err), have) {
			t.Errorf("%v does not list %s", err, have)
		}
	}
	// Else it would say that there is what it says there is not.
	if _, err := m.resolve(m.index(features), "linux/amd64"); !strings.Contains(fmt.Sprint(err), "linux/amd64 with sse9") {
		t.Errorf("%v does not name the feature", err)
	}
}

// TestResolveManifest: the config is fetched only to tell the platform.
func TestResolveManifest(t *testing.T) {
	m := make(memory)
	named := m.image("linux/amd64", "a")
	bare := named
	bare.Platform = nil
	for _, tt := range []struct {
		root   ocispec.Descriptor
		config bool
	}{{named, false}, {m.index(named), false}, {bare, true}} {
		img, err := ResolveManifest(context.Background(), m, tt.root, m[tt.root.Digest], mustPlatform("linux/amd64"))
		if err != nil || img.Manifest.Digest != named.Digest || (img.ConfigBytes != nil) != tt.config {
			t.Errorf("%+v, %v, want the config: %v", img, err, tt.config)
		}
	}
}

func TestResolveBounds(t *testing.T) {
	m := memory{}
	deep := m.image("linux/s390x", "deep")
	for range 6 {
		deep = m.index(deep)
	}
	if _, err := m.resolve(deep, "linux/amd64"); !errors.Is(err, fault.ErrCorrupt) {
		t.Errorf("deep nesting: %v", err)
	}
	var wide []ocispec.Descriptor
	for i := range 100 {
		wide = append(wide, m.index(m.image("linux/s390x", fmt.Sprint(i))))
	}
	if _, err := m.resolve(m.index(wide...), "linux/amd64"); !errors.Is(err, fault.ErrCorrupt) {
		t.Errorf("100 nested indexes: %v", err)
	}
	wide = wide[:0]
	for i := range 100 {
		d := m.image("linux/s390x", fmt.Sprint(i))
		d.Platform = nil
		wide = append(wide, d)
	}
	if _, err := m.resolve(m.index(wide...), "linux/amd64"); !errors.Is(err, fault.ErrCorrupt) {
		t.Errorf("100 images of unknown platform: %v", err)
	}
	// Each listed a thousand times is looked at once.
	same := m.index(m.image("linux/s390x", "x"))
	wide = wide[:0]
	for range 1000 {
		wide = append(wide, same)
	}
	if _, err := m.resolve(m.index(wide...), "linux/amd64"); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("one index a thousand times: %v", err)
	}
	lie := m.image("linux/amd64", "x")
	lie.MediaType = ocispec.MediaTypeImageIndex
	if _, err := m.resolve(m.index(lie), "linux/amd64"); !errors.Is(err, fault.ErrCorrupt) {
		t.Errorf("an image called index: %v", err)
	}
	big := m.image("linux/amd64", "x")
	big.Size = MaxManifestSize + 1
	if _, err := m.resolve(m.index(big), "linux/amd64"); !errors.Is(err, fault.ErrCorrupt) {
		t.Errorf("a manifest said to be large: %v", err)
	}
}

func TestParseHostile(t *testing.T) {
	d := `{"mediaType":"x","digest":"sha256:` + strings.Repeat("0", 64) + `","size":1}`
	manifest := func(config, layers string) string {
		return `{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `","config":` + config + `,"layers":[` + layers + `]}`
	}
	index := func(list string) string {
		return `{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageIndex + `","manifests":[` + list + `]}`
	}
	if _, err := Parse(ocispec.MediaTypeImageManifest, []byte(manifest(d, d))); err != nil {
		t.Fatal(err)
	}
	if _, err := Parse("", []byte(index(d))); err != nil {
		t.Fatal(err)
	}
	size := func(s string) string { return strings.Replace(d, `"size":1`, `"size":`+s, 1) }
	for name, tt := range map[string]struct {
		mediaType, text string
		err             error
	}{
		"empty":                   {"", "", fault.ErrCorrupt},
		"null":                    {"", "null", fault.ErrCorrupt},
		"array":                   {"", "[]", fault.ErrCorrupt},
		"no config":               {"", `{"layers":[]}`, fault.ErrCorrupt},
		"layers and manifests":    {"", `{"config":` + d + `,"layers":[` + d + `],"manifests":[` + d + `]}`, fault.ErrCorrupt},
		"an index with layers":    {ocispec.MediaTypeImageIndex, `{"layers":[],"manifests":[]}`, fault.ErrCorrupt},
		"an index with a config":  {ocispec.MediaTypeImageIndex, `{"config":` + d + `}`, fault.ErrCorrupt},
		"an image with manifests": {ocispec.MediaTypeImageManifest, `{"manifests":[]}`, fault.ErrCorrupt},
		"fsLayers":                {"", `{"config":` + d + `,"layers":[],"fsLayers":[]}`, fault.ErrCorrupt},
		"types disagree":          {ocispec.MediaTypeImageIndex, manifest(d, d), fault.ErrCorrupt},
		"unknown type":            {"application/x-tar", "{}", fault.ErrUnsupported},
		"schema 1":                {"", `{"schemaVersion":1}`, fault.ErrUnsupported},
		"negative size":           {"", manifest(d, size("-1")), fault.ErrCorrupt},
		"huge size":               {"", manifest(d, size("9223372036854775807")), fault.ErrCorrupt},
		"size too large for JSON": {"", manifest(d, size("99999999999999999999")), fault.ErrCorrupt},
		"fractional size":         {"", manifest(d, size("1.5")), fault.ErrCorrupt},
		"huge config":             {"", manifest(size("9000000"), d), fault.ErrCorrupt},
		"two sizes of one layer":  {"", manifest(d, d+","+size("2")), fault.ErrCorrupt},
		"bad digest":              {"", manifest(d, strings.Replace(d, "sha256:0", "sha256:../0", 1)), fault.ErrCorrupt},
		"unknown algorithm":       {"", manifest(d, strings.Replace(d, "sha256", "md5", 1)), fault.ErrCorrupt},
		"no digest":               {"", index(`{"size":1}`), fault.ErrCorrupt},
		"many layers":             {"", manifest(d, d+strings.Repeat(","+d, MaxLayers)), fault.ErrCorrupt},
		"many manifests":          {"", index(d + strings.Repeat(","+d, maxManifests)), fault.ErrCorrupt},
		"too large":               {"", manifest(d, d) + strings.Repeat(" ", MaxManifestSize), fault.ErrCorrupt},
		"deep":                    {"", strings.Repeat("[", 100_000), fault.ErrCorrupt},
	} {
		doc, err := Parse(tt.mediaType, []byte(tt.text))
		if !errors.Is(err, tt.err) || len(fmt.Sprint(err)) > 400 {
			t.Errorf("%s: %+v, %.400v", name, doc, err)
		}
	}
}

func TestParsePlatform(t *testing.T) {
	for in, want := range map[string]string{
		"linux/amd64": "linux/amd64", "linux/arm64/v8": "linux/arm64", "linux/arm": "linux/arm/v7", "linux/x86_64": "linux/amd64",
		"Linux/AMD64": "linux/amd64", "linux/arm/6": "linux/arm/v6", "linux/armhf": "linux/arm/v7", "linux/armel": "linux/arm/v6",
		"windows/amd64:10.0.17763.1": "windows/amd64:10.0.17763.1", "linux/arm/6:1": "linux/arm/v6:1",
	} {
		p, err := ParsePlatform(in)
		if err != nil || FormatPlatform(*p) != want {
			t.Errorf("%s: %v, %v", in, p, err)
		}
	}
	for _, in := range []string{"", "linux", "linux/", "/amd64", "a/b/c/d", "linux/amd 64", "linux/\x1b[31m", "windows/amd64:", "windows/amd64:1:2", "windows:1/amd64", "windows/amd64:\x1b"} {
		if p, err := ParsePlatform(in); !errors.Is(err, fault.ErrUsage) {
			t.Errorf("%q: %v, %v", in, p, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	m := memory{}
	img := m.image("linux/amd64", "x")
	f.Add(ocispec.MediaTypeImageManifest, m[img.Digest])
	f.Add("application/json", m[m.index(img).Digest])
	f.Fuzz(func(t *testing.T, mediaType string, b []byte) {
		doc, err := Parse(mediaType, b)
		if err != nil {
			return
		}
		if (doc.Manifest == nil) == (doc.Index == nil) {
			t.Fatalf("%+v", doc)
		}
		if doc.Manifest != nil {
			for _, l := range append(doc.Manifest.Layers, doc.Manifest.Config) {
				if CheckDescriptor(l) != nil || strings.Contains(BlobPath(l.Digest), "..") {
					t.Errorf("%+v", l)
				}
			}
		}
	})
}
