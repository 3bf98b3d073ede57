import ArgumentParser
import Foundation
import Outbox
import Postgres
import Templates
import Transport

struct TemplateCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "template", abstract: "Bodies with %parameters%, and presets for known receivers.",
        subcommands: [Presets.self, Show.self, Render.self, Lint.self, Test.self])

    /// A template from the command line, or a preset's.
    struct Source: ParsableArguments {
        @Option(name: .long, help: "The template; @file or - for stdin.") var template: String?
        @Option(name: .long, help: "json, xml or text.") var kind: Template.Kind?
        @Option(name: .long, help: "A preset's template instead.") var preset: String?

        func read() throws -> (template: Template, preset: Preset?) {
            let chosen = try preset.map { try Preset.named($0) }
            guard
                let text = try template.map({ String(decoding: try textArgument($0), as: UTF8.self) })
                    ?? chosen?.template
            else { throw Problem(.invalidValue, "there is no template", hint: "Give --template or --preset") }
            do { return (try Template(text, kind: kind ?? chosen?.kind ?? .json), chosen) } catch {
                throw Problem(.invalidValue, "the template cannot be used: \(error)")
            }
        }
    }

    struct Presets: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List the presets.")
        @Option(name: [.customShort("o"), .customLong("output")], help: "table, json or jsonl.") var format = Output
            .table

        func run() async throws {
            for preset in Preset.all {
                let fields = [
                    ("name", jsonString(preset.name)), ("summary", jsonString(preset.summary)),
                    ("rules", jsonString(preset.rules.summary)),
                    ("warning", preset.warning.map(jsonString) ?? "null"),
                ]
                format.fact(
                    fields.map { (name: $0.0, json: $0.1) },
                    text: preset.name.padding(toLength: 22, withPad: " ", startingAt: 0) + preset.summary)
            }
        }
    }

    struct Show: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Print a preset's template.")
        @Argument(help: "The preset.") var name: String

        func run() async throws {
            let preset = try Preset.named(name)
            print(preset.template)
            note("success: \(preset.rules.summary)")
            if let warning = preset.warning { note(warning) }
        }
    }

    struct Render: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Fill a template from data, and print the body.")
        @OptionGroup var source: Source
        @Option(name: .long, help: "The event's data, JSON; @file or - for stdin.") var data: String?
        @Option(name: .long, help: "The event's context, a JSON object; @file or - for stdin.") var context: String?
        @Option(name: .long, help: "The event's type.") var eventType = "outbox.test"

        func run() async throws {
            let template = try source.read().template
            let delivery = try sampleRequest(
                template, type: eventType, data: try data.map { try textArgument($0) },
                context: try context.map { try textArgument($0) })
            print(String(decoding: delivery.request.body, as: UTF8.self))
            if let text = delivery.note { note(text.replacing("note: ", with: "")) }
        }
    }

    struct Test: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Fill a template with values that try to break out of it; exit 1 when a result does not parse.")
        @OptionGroup var source: Source

        /// The same text for every parameter.
        private struct Values: ParameterValues {
            let text: String
            func value(of parameter: Parameter) -> ParameterValue? { .text(text) }
        }

        private static let hostile = [
            "", #"","injected":true,"x":""#, #"\"#, "</x><injected/>", "]]>", "<!-- ", "&lt;", "'\" onload='",
            "\r\nX-Injected: 1", "\u{2028}",
            "%type%", "../..", String(repeating: "[", count: 1000), "\u{1F600}\u{0301}",
        ]

        func run() async throws {
            let template = try source.read().template
            for text in Self.hostile {
                do {
                    _ = try template.render(Values(text: text))
                } catch {
                    throw Answer(message: "the value \(printable(String(text.prefix(40)))) does not go in: \(error)")
                }
            }
            print("ok  \(Self.hostile.count) values in \(template.parameters.count) parameters")
        }
    }

    struct Lint: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Check a template: parameters, structure, size; exit 64 when it cannot be used.")
        @OptionGroup var source: Source
        @Option(name: .long, help: "Also check the size of what this data makes; @file or - for stdin.") var data:
            String?

        func run() async throws {
            let (template, preset) = try source.read()
            print("ok  \(template.parameters.count) parameters")
            guard let preset else { return }
            if let warning = preset.warning { note(warning) }
            for finding in preset.findings(in: template) { note(finding) }
            let size = try sampleRequest(
                template, data: try textArgument(data ?? #"{"text":""}"#), maxBodyBytes: preset.maxBodyBytes
            ).request.body.count
            if let limit = preset.warnBytes, size > limit {
                note("\(size) bytes: \(preset.name) may cut off or refuse more than \(limit)")
            }
        }
    }
}

/// The request that a template makes of a sample event.
private func sampleRequest(
    _ template: Template, type: String = "outbox.test", data: [UInt8]? = nil, context: [UInt8]? = nil,
    maxBodyBytes: Int? = nil
) throws -> DeliveryRequest {
    let now = Timestamp(microseconds: Int64(Date().timeIntervalSince1970 * 1_000_000))
    var configuration = EndpointConfiguration(name: "endpoint", url: "https://example.com/")
    configuration.format = .template
    configuration.template = template
    configuration.maxBodyBytes = maxBodyBytes
    let event = Event.sample(type: type, after: data ?? Event.sampleData, context: context, at: now)
    do {
        return try HTTPRequest.delivery(
            of: event, to: Endpoint(EndpointID(rawValue: .random()), configuration), number: 1,
            webhookID: "evt_sample_0", at: now)
    } catch { throw Problem(.invalidValue, "\(error)") }
}
