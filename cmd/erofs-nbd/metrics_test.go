package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var (
	metricHelp   = regexp.MustCompile(`^# HELP ([a-zA-Z_:][a-zA-Z0-9_:]*) (\S.*)$`)
	metricType   = regexp.MustCompile(`^# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) (counter|gauge|histogram|summary|untyped)$`)
	metricSample = regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)((?:\{[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\]|\\[\\"n])*"\})?) (\S+)$`)
)

// exposition reads Prometheus's text format, version 0.0.4, and is strict:
// each metric is one group of lines, with help and type before its samples; no
// sample is there twice; a counter is called one; a histogram's buckets are in
// order, grow, and end with all. It returns the samples' values.
func exposition(t *testing.T, text string) map[string]string {
	t.Helper()
	if !strings.HasSuffix(text, "\n") {
		t.Error("no newline at the end")
	}
	values := map[string]string{}
	types := map[string]string{}
	var group, help string // the metric whose lines these are; what has its help
	var buckets []float64
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if m := metricHelp.FindStringSubmatch(line); m != nil {
			if help = m[1]; types[help] != "" {
				t.Errorf("a second group: %s", line)
			}
			continue
		}
		if m := metricType.FindStringSubmatch(line); m != nil {
			if group = m[1]; help != group || types[group] != "" {
				t.Errorf("no help right before: %s", line)
			}
			types[group], buckets = m[2], nil
			continue
		}
		m := metricSample.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("no line of the format: %q", line)
			continue
		}
		v, err := strconv.ParseFloat(m[3], 64)
		if err != nil || v < 0 || values[m[1]+m[2]] != "" {
			t.Errorf("no number, or there already: %s", line)
		}
		values[m[1]+m[2]] = m[3]
		suffix, ok := strings.CutPrefix(m[1], group)
		switch kind := types[group]; {
		case !ok || group == "":
			t.Errorf("outside of its group: %s", line)
		case kind == "histogram" && suffix == "_bucket":
			le, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimPrefix(m[2], `{le="`), `"}`), 64)
			if err != nil || len(buckets) > 0 && (le <= buckets[len(buckets)-2] || v < buckets[len(buckets)-1]) {
				t.Errorf("not in order: %s", line)
			}
			buckets = append(buckets, le, v)
		case kind == "histogram":
			if !slices.Contains([]string{"_sum", "_count"}, suffix) || m[2] != "" {
				t.Errorf("no part of a histogram: %s", line)
			}
			if suffix == "_count" && m[3] != values[group+`_bucket{le="+Inf"}`] {
				t.Errorf("not all are in the last bucket: %s", line)
			}
		case suffix != "" || (kind == "counter") != strings.HasSuffix(group, "_total"):
			t.Errorf("a %s: %s", kind, line)
		}
	}
	return values
}

// TestMetrics: what Prometheus gets says what was read, and nonsense is
// refused.
func TestMetrics(t *testing.T) {
	f := newFixture(t)
	reg, ref := serveLayout(t, f.im.Dir)
	s := start(t, f.lazyArgs(ref, "--metrics", "127.0.0.1:0", "--cache-dir", t.TempDir())...)
	m := regexp.MustCompile(`metrics at http://(\S+)/metrics`).FindStringSubmatch(s.stderr.String())
	if m == nil {
		t.Fatalf("stderr: %s", s.stderr)
	}
	started := len(reg.Requests())
	reg.Reset()
	f.same(t, readAll(t, s.uri))
	resp, err := http.Get("http://" + m[1] + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain; version=0.0.4") {
		t.Errorf("%v, %s, %v", err, resp.Status, resp.Header)
	}
	values := exposition(t, string(b))
	for name, want := range map[string]string{
		"layerpipe_connections":                     "1",
		"layerpipe_read_errors_total":               "0",
		"layerpipe_retries_total":                   "0",
		`layerpipe_read_seconds_bucket{le="+Inf"}`:  values["layerpipe_reads_total"],
		"layerpipe_read_seconds_count":              values["layerpipe_reads_total"],
		`layerpipe_fetched_bytes_total{for="idle"}`: "0",
		"layerpipe_store_misses_total":              "0",
		"layerpipe_store_failed_total":              "0",
		"layerpipe_requests_total":                  fmt.Sprint(started + len(reg.Requests())),
	} {
		if values[name] != want || want == "" {
			t.Errorf("%s is %q, want %q", name, values[name], want)
		}
	}
	if n := len(reg.Requests()); n == 0 || values["layerpipe_store_written_bytes_total"] == "0" {
		t.Errorf("%d requests, %s bytes written", n, values["layerpipe_store_written_bytes_total"])
	}
	for request, status := range map[string]string{
		"GET /other HTTP/1.1\r\nHost: x\r\n\r\n":       "404",
		"POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n":    "405",
		"GET /metrics\r\n\r\n":                         "400",
		"\r\n":                                         "400",
		"GET /metrics?x=y HTTP/1.0\r\n\r\n":            "200",
		"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n":    "200",
		"GET /" + strings.Repeat("x", 20_000) + "\r\n": "",
	} {
		c, err := net.Dial("tcp", m[1])
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte(request))
		b, _ := io.ReadAll(c)
		c.Close()
		if status == "" && len(b) > 0 || status != "" && !strings.HasPrefix(string(b), "HTTP/1.1 "+status+" ") {
			t.Errorf("%.50q: %.50q", request, b)
		}
		if strings.HasPrefix(request, "HEAD") && !strings.HasSuffix(string(b), "\r\n\r\n") {
			t.Error("HEAD has a body")
		}
	}
	if code := s.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
