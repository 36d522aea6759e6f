// Answers PromQL from metrics pages: a Prometheus without its scraping, its clock and its server.
//
// Reads one JSON document from standard input and writes one to standard output:
//
//	{"pages": [{"at": 1700000000, "labels": {"job": "x"}, "text": "up 1\n"}],
//	 "questions": [{"query": "rate(x_total[5m])", "at": 1700000060}],
//	 "rules": "groups: []"}
//
//	{"answers": [{"error": "", "samples": [{"labels": {}, "value": "0.5"}]}], "faults": []}
//
// Times are seconds since the epoch. A page's labels are added to each of its series, as the scraper
// adds them. `faults` are those of the rules, which may be left out.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"strconv"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

type page struct {
	At     float64           `json:"at"`
	Labels map[string]string `json:"labels"`
	Text   string            `json:"text"`
}

type question struct {
	Query string  `json:"query"`
	At    float64 `json:"at"`
}

type input struct {
	Pages     []page     `json:"pages"`
	Questions []question `json:"questions"`
	Rules     string     `json:"rules"`
}

type sample struct {
	Labels map[string]string `json:"labels"`
	Value  string            `json:"value"`
}

type answer struct {
	Error   string   `json:"error"`
	Samples []sample `json:"samples"`
}

type output struct {
	Answers []answer `json:"answers"`
	Faults  []string `json:"faults"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "promql:", err)
		os.Exit(1)
	}
}

func run() error {
	var in input
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		return err
	}
	db := newStore()
	for _, it := range in.Pages {
		if err := db.add(it); err != nil {
			return err
		}
	}
	reader := parser.NewParser(parser.Options{})
	engine := promql.NewEngine(promql.EngineOpts{
		MaxSamples: 10_000_000, Timeout: time.Minute, Parser: reader,
		EnableAtModifier: true, EnableNegativeOffset: true,
	})
	out := output{Answers: []answer{}, Faults: []string{}}
	for _, it := range in.Questions {
		out.Answers = append(out.Answers, ask(engine, db, it))
	}
	if in.Rules != "" {
		_, faults := rulefmt.Parse([]byte(in.Rules), false, model.UTF8Validation, reader, slog.Default())
		for _, fault := range faults {
			out.Faults = append(out.Faults, fault.Error())
		}
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

func millis(seconds float64) int64 { return int64(seconds * 1000) }

// One value of a series, as the engine reads it.
type point struct {
	at    int64
	value float64
}

func (p point) T() int64                      { return p.at }
func (p point) ST() int64                     { return 0 }
func (p point) F() float64                    { return p.value }
func (p point) H() *histogram.Histogram       { return nil }
func (p point) FH() *histogram.FloatHistogram { return nil }
func (p point) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (p point) Copy() chunks.Sample           { return p }

type series struct {
	labels labels.Labels
	points []chunks.Sample
}

// All series in memory; a storage.Queryable.
type store struct {
	series map[string]*series
	// By target: what its last page had. What a page leaves out is stale from then on.
	last map[string]map[string]bool
}

func newStore() *store {
	return &store{series: map[string]*series{}, last: map[string]map[string]bool{}}
}

func (s *store) put(named labels.Labels, at int64, number float64) string {
	key := named.String()
	known, found := s.series[key]
	if !found {
		known = &series{labels: named}
		s.series[key] = known
	}
	known.points = append(known.points, point{at, number})
	return key
}

func (s *store) add(it page) error {
	reader, err := textparse.New([]byte(it.Text), "text/plain; version=0.0.4", nil, textparse.ParserOptions{})
	if err != nil {
		return err
	}
	target := labels.FromMap(it.Labels).String()
	seen := map[string]bool{}
	for {
		kind, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("page of %s: %w", target, err)
		}
		if kind != textparse.EntrySeries {
			continue
		}
		_, _, number := reader.Series()
		var own labels.Labels
		reader.Labels(&own)
		all := labels.NewBuilder(own)
		for name, text := range it.Labels {
			all.Set(name, text)
		}
		seen[s.put(all.Labels(), millis(it.At), number)] = true
	}
	for key := range s.last[target] {
		if !seen[key] {
			s.put(s.series[key].labels, millis(it.At), math.Float64frombits(value.StaleNaN))
		}
	}
	s.last[target] = seen
	return nil
}

func (s *store) Querier(int64, int64) (storage.Querier, error) {
	return &storage.MockQuerier{SelectMockFunction: s.find}, nil
}

func (s *store) find(_ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	found := []storage.Series{}
	for _, it := range s.series {
		fits := true
		for _, matcher := range matchers {
			fits = fits && matcher.Matches(it.labels.Get(matcher.Name))
		}
		if fits {
			found = append(found, storage.NewListSeries(it.labels, it.points))
		}
	}
	return &list{series: found, at: -1}
}

type list struct {
	series []storage.Series
	at     int
}

func (l *list) Next() bool                        { l.at++; return l.at < len(l.series) }
func (l *list) At() storage.Series                { return l.series[l.at] }
func (l *list) Err() error                        { return nil }
func (l *list) Warnings() annotations.Annotations { return nil }

func ask(engine *promql.Engine, db *store, it question) answer {
	query, err := engine.NewInstantQuery(context.Background(), db, nil, it.Query, time.UnixMilli(millis(it.At)))
	if err != nil {
		return answer{Error: err.Error()}
	}
	defer query.Close()
	result := query.Exec(context.Background())
	if result.Err != nil {
		return answer{Error: result.Err.Error()}
	}
	found := answer{Samples: []sample{}}
	add := func(named labels.Labels, value float64) {
		text := strconv.FormatFloat(value, 'g', -1, 64)
		found.Samples = append(found.Samples, sample{Labels: named.Map(), Value: text})
	}
	switch values := result.Value.(type) {
	case promql.Vector:
		for _, it := range values {
			add(it.Metric, it.F)
		}
	case promql.Scalar:
		add(labels.EmptyLabels(), values.V)
	default:
		return answer{Error: fmt.Sprintf("%T is no vector", result.Value)}
	}
	return found
}
