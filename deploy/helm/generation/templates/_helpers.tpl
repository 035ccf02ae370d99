{{- define "generation.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-{{ .Chart.Name }}{{ end -}}
{{- end }}

{{- define "generation.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "generation.labels" -}}
{{ include "generation.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "generation.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* The text of a setting. Helm reads all numbers as floats, and would write 104857600 as 1.048576e+08. */}}
{{- define "generation.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end }}

{{- define "generation.check" -}}
{{- if and (not .Values.tokensSecret) (ne (toString .Values.settings.ALLOW_UNAUTHENTICATED) "true") }}
{{- fail "tokensSecret is empty: name a Secret with tokens, or set settings.ALLOW_UNAUTHENTICATED to true" }}
{{- end }}
{{- $simulator := eq (toString .Values.settings.KIE_SIMULATOR) "true" }}
{{- if not (or .Values.secrets.KIE_API_KEY .Values.settings.KIE_API_KEY_FILE $simulator) }}
{{- fail "secrets.KIE_API_KEY is missing: set it, or settings.KIE_SIMULATOR to true for the samples of a simulator" }}
{{- end }}
{{- if and $simulator (eq .Values.database "postgresql") (not .Values.settings.KIE_API_URL) }}
{{- fail "settings.KIE_SIMULATOR: each replica would have its own simulator; use database=sqlite, or settings.KIE_API_URL and settings.KIE_UPLOAD_URL of one that they share" }}
{{- end }}
{{- if and (eq .Values.database "postgresql") (not .Values.secrets.DATABASE_URL) (not .Values.settings.DATABASE_URL_FILE) }}
{{- fail "secrets.DATABASE_URL is missing: it must be the URL of a PostgreSQL database" }}
{{- end }}
{{- if and .Values.tls.clientCa (not .Values.tls.secretName) }}
{{- fail "tls.clientCa needs tls.secretName" }}
{{- end }}
{{- end }}
