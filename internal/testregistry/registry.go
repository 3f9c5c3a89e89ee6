// Package testregistry is a container registry in process, for tests and
// demonstrations: an http.Handler that serves OCI layout directories and
// images in memory, logs each request, counts the bytes of each blob that it
// sent, and misbehaves on demand.
package testregistry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Request is one request as the log has it.
type Request struct {
	Method string
	Path   string
	Range  string // the header
	Auth   bool   // there was an Authorization header
	Status int
	Bytes  int64 // of the body that was sent
}

// A Registry is an http.Handler. Its zero value is not usable; see New.
type Registry struct {
	mu       sync.Mutex
	repos    map[string]*repository
	requests []*Request
	served   map[digest.Digest]int64
	faults   []*Fault
	auth     authorizer
	noRanges bool
}

type repository struct {
	manifests map[digest.Digest]content
	tags      map[string]digest.Digest
	blobs     map[digest.Digest]content
}

// content is bytes in memory or in a file.
type content struct {
	mediaType string
	data      []byte
	file      string
}

func (c content) open() (io.ReadSeekCloser, error) {
	if c.file != "" {
		return os.Open(c.file)
	}
	return struct {
		io.ReadSeeker
		io.Closer
	}{bytes.NewReader(c.data), io.NopCloser(nil)}, nil
}

// New is a registry without images.
func New() *Registry {
	return &Registry{repos: make(map[string]*repository), served: make(map[digest.Digest]int64)}
}

// repo is a repository, made if need be. mu is held.
func (r *Registry) repo(name string) *repository {
	p := r.repos[name]
	if p == nil {
		p = &repository{make(map[digest.Digest]content), make(map[string]digest.Digest), make(map[digest.Digest]content)}
		r.repos[name] = p
	}
	return p
}

// AddBlob puts a blob into a repository.
func (r *Registry) AddBlob(name, mediaType string, b []byte) ocispec.Descriptor {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	r.repo(name).blobs[d.Digest] = content{data: b}
	return d
}

// PutBlob puts bytes under a digest that they need not have.
func (r *Registry) PutBlob(name string, d digest.Digest, b []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.repo(name).blobs[d] = content{data: b}
}

// AddManifest puts a manifest or an index into a repository, under its digest
// and under tag, if that is not "". v is marshalled unless it is []byte.
func (r *Registry) AddManifest(name, tag, mediaType string, v any) ocispec.Descriptor {
	b, ok := v.([]byte)
	if !ok {
		var err error
		if b, err = json.Marshal(v); err != nil {
			panic(fmt.Sprintf("testregistry: marshal manifest: %v", err))
		}
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.repo(name)
	p.manifests[d.Digest] = content{mediaType: mediaType, data: b}
	if tag != "" {
		p.tags[tag] = d.Digest
	}
	return d
}

// AddLayout serves an OCI image layout directory as a repository. The images
// have the tags that index.json gives them, "latest" where it gives none. The
// blobs are read from their files as they are asked for.
func (r *Registry) AddLayout(name, dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, ocispec.ImageIndexFile))
	if err != nil {
		return err
	}
	var x ocispec.Index
	if err := json.Unmarshal(b, &x); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.repo(name)
	for _, m := range x.Manifests {
		tag := m.Annotations[ocispec.AnnotationRefName]
		if tag == "" {
			tag = "latest"
		}
		p.tags[tag] = m.Digest
		if err := p.addTree(dir, m); err != nil {
			return err
		}
	}
	return nil
}

// addTree adds what a descriptor of a manifest or an index refers to.
func (p *repository) addTree(dir string, d ocispec.Descriptor) error {
	file := func(d ocispec.Descriptor) string {
		return filepath.Join(dir, ocispec.ImageBlobsDir, d.Digest.Algorithm().String(), d.Digest.Encoded())
	}
	b, err := os.ReadFile(file(d))
	if err != nil {
		return err
	}
	p.manifests[d.Digest] = content{mediaType: d.MediaType, data: b}
	var m struct {
		Config    *ocispec.Descriptor
		Layers    []ocispec.Descriptor
		Manifests []ocispec.Descriptor
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	for _, c := range m.Manifests {
		if err := p.addTree(dir, c); err != nil {
			return err
		}
	}
	if m.Config != nil {
		m.Layers = append(m.Layers, *m.Config)
	}
	for _, l := range m.Layers {
		p.blobs[l.Digest] = content{file: file(l)}
	}
	return nil
}

// NoRanges makes the registry answer a Range with the whole blob and 200.
func (r *Registry) NoRanges() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.noRanges = true
}

// Requests is the log since the start or the last Reset.
func (r *Registry) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]Request, len(r.requests))
	for i, q := range r.requests {
		list[i] = *q
	}
	return list
}

// Served is the number of bytes of each blob and manifest that were sent.
func (r *Registry) Served() map[digest.Digest]int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.served)
}

// TotalServed is the number of bytes of all bodies that were sent.
func (r *Registry) TotalServed() (n int64) {
	for _, q := range r.Requests() {
		n += q.Bytes
	}
	return n
}

// Reset forgets the log and the counts.
func (r *Registry) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests, r.served = nil, make(map[digest.Digest]int64)
}

var (
	manifestPath  = regexp.MustCompile(`^/v2/(.+)/manifests/([^/]+)$`)
	blobPath      = regexp.MustCompile(`^/v2/(.+)/blobs/([^/]+)$`)
	referrersPath = regexp.MustCompile(`^/v2/(.+)/referrers/([^/]+)$`)
)

// ServeHTTP implements http.Handler.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	cw := &countingWriter{ResponseWriter: w}
	// A fault may end the request by a panic with http.ErrAbortHandler.
	defer r.begin(req)(cw)
	if f := r.fault(req); f != nil {
		f.Serve(cw, req, http.HandlerFunc(r.serve))
		return
	}
	r.serve(cw, req)
}

// begin logs a request; the function it returns completes the entry. A client
// has its answer before that is called: after a Reset in between, it must not
// count.
func (r *Registry) begin(req *http.Request) (end func(*countingWriter)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	entry := &Request{
		Method: req.Method, Path: req.URL.Path, Range: req.Header.Get("Range"),
		Auth: req.Header.Get("Authorization") != "",
	}
	r.requests = append(r.requests, entry)
	served, path := r.served, req.URL.Path
	return func(w *countingWriter) {
		r.mu.Lock()
		defer r.mu.Unlock()
		entry.Status, entry.Bytes = w.status, w.n
		if _, last, ok := strings.Cut(path, "/sha256:"); ok {
			served[digest.Digest("sha256:"+last)] += w.n
		}
	}
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	auth := r.auth
	r.mu.Unlock()
	if auth != nil && auth.serve(w, req) {
		return
	}
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED")
		return
	}
	if p := req.URL.Path; p == "/v2" || p == "/v2/" {
		w.Write([]byte("{}"))
	} else if m := manifestPath.FindStringSubmatch(p); m != nil {
		r.manifest(w, req, m[1], m[2])
	} else if m := blobPath.FindStringSubmatch(p); m != nil {
		r.blob(w, req, m[1], m[2])
	} else if m := referrersPath.FindStringSubmatch(p); m != nil {
		r.referrers(w, m[1], m[2])
	} else {
		fail(w, http.StatusNotFound, "NOT_FOUND")
	}
}

func (r *Registry) find(name string, get func(*repository) (content, bool)) (content, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.repos[name]; p != nil {
		return get(p)
	}
	return content{}, false
}

func (r *Registry) manifest(w http.ResponseWriter, req *http.Request, name, ref string) {
	c, ok := r.find(name, func(p *repository) (content, bool) {
		d, ok := p.tags[ref]
		if !ok {
			d = digest.Digest(ref)
		}
		c, ok := p.manifests[d]
		return c, ok
	})
	if !ok {
		fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN")
		return
	}
	w.Header().Set("Content-Type", c.mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(c.data)))
	w.Header().Set("Docker-Content-Digest", digest.FromBytes(c.data).String())
	if req.Method == http.MethodGet {
		w.Write(c.data)
	}
}

func (r *Registry) blob(w http.ResponseWriter, req *http.Request, name, ref string) {
	c, ok := r.find(name, func(p *repository) (content, bool) {
		c, ok := p.blobs[digest.Digest(ref)]
		return c, ok
	})
	if !ok {
		fail(w, http.StatusNotFound, "BLOB_UNKNOWN")
		return
	}
	f, err := c.open()
	if err != nil {
		fail(w, http.StatusInternalServerError, "UNKNOWN")
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", ref)
	w.Header().Set("Etag", `"`+ref+`"`)
	r.mu.Lock()
	noRanges := r.noRanges
	r.mu.Unlock()
	if noRanges {
		req = req.Clone(req.Context())
		req.Header.Del("Range")
	}
	http.ServeContent(w, req, "", time.Time{}, f)
}

// referrers lists the manifests whose subject is a digest.
func (r *Registry) referrers(w http.ResponseWriter, name, ref string) {
	x := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	x.SchemaVersion = 2
	r.mu.Lock()
	if p := r.repos[name]; p != nil {
		for d, c := range p.manifests {
			var m ocispec.Manifest
			if json.Unmarshal(c.data, &m) == nil && m.Subject != nil && m.Subject.Digest.String() == ref {
				x.Manifests = append(x.Manifests, ocispec.Descriptor{
					MediaType: c.mediaType, Digest: d, Size: int64(len(c.data)),
					ArtifactType: m.ArtifactType, Annotations: m.Annotations,
				})
			}
		}
	}
	r.mu.Unlock()
	w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
	json.NewEncoder(w).Encode(x)
}

// fail answers as the distribution spec has it.
func fail(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":"test registry"}]}`, code)
}

// countingWriter counts what goes out.
type countingWriter struct {
	http.ResponseWriter
	status int
	n      int64
}

func (w *countingWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *countingWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.n += int64(n)
	return n, err
}

// ReadFrom keeps the server's way of sending a file.
func (w *countingWriter) ReadFrom(r io.Reader) (int64, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := io.Copy(w.ResponseWriter, r)
	w.n += n
	return n, err
}

func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Listen serves the registry, by plain HTTP on a port of its own, until stop
// is called, and tells its HOST:PORT.
func (r *Registry) Listen() (host string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	srv := &http.Server{Handler: r, ReadHeaderTimeout: time.Minute}
	go srv.Serve(l)
	return l.Addr().String(), func() { srv.Close() }, nil
}
